"""A run's explorer on its way to the Hub: only if it shows the very weights that are published."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sae_lens_bipolar.errors import ConfigError, HubError
from sae_lens_bipolar.explorer import site
from sae_lens_bipolar.explorer.build import PAGE
from sae_lens_bipolar.files.names import EXPLORER
from sae_lens_bipolar.files.paths import files_below
from sae_lens_bipolar.hub.copies import refuse_secrets
from sae_lens_bipolar.runs.sources import Source

_PARTS = ("data", "static")


def stage_explorer(run_dir: Path, saes: Sequence[Source], target: Path) -> str:
    """Copy `run_dir/explorer` to `target/explorer`; return the path of its page below `target`.

    Its contexts are excerpts of the text that it was built on: they are published with it.

    Raises:
        ConfigError: if the run has no finished explorer.
        HubError: if it shows an SAE that is not published, or other weights; or if a file would
            publish an access token.
    """
    source = run_dir / EXPLORER
    try:
        shown = site.get(source, "site")["saes"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"with_explorer: {source} holds no finished explorer; build one: "
            f"sae-lens-bipolar explore {run_dir} --output {source}"
        ) from error
    if (target / EXPLORER).exists():
        raise ConfigError(f"id={EXPLORER!r} is where the explorer goes: give another --id")
    digests = {one.name: one.digest for one in saes}
    for sae in shown:
        if digests.get(sae["name"]) != sae["digest"]:
            raise HubError(
                f"{source} shows {sae['name']} of other weights than are published: build it again"
            )
    files = [source / PAGE, *(file for part in _PARTS for file in files_below(source, part))]
    for file in files:
        copy = target / EXPLORER / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    refuse_secrets(target / EXPLORER)
    return f"{EXPLORER}/{PAGE}"
