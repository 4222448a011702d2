"""A host's attributes are replaced for a while, and restored whatever happens."""

import os
from typing import Any

import pytest
import transformers
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import HostError
from sae_lens_bipolar.inputs.patching import replaced


def test_replaced_restores_modules_classes_and_objects() -> None:
    class Host:
        @staticmethod
        def static() -> int:
            return 1

        def method(self) -> int:
            return 1

    host = Host()
    static = vars(Host)["static"]
    with pytest.raises(KeyError):
        _raise_inside(Host, host)
    assert vars(Host)["static"] is static
    assert (host.method(), vars(host)) == (1, {})


def _raise_inside(kind: Any, host: Any) -> None:
    with replaced(kind, static=lambda: 2), replaced(host, method=lambda: 3):
        assert (kind.static(), host.method()) == (2, 3)
        raise KeyError


def test_replaced_refuses_what_the_host_no_longer_has() -> None:
    with (
        pytest.raises(HostError, match="os has no no_such_function"),
        replaced(os, no_such_function=1),
    ):
        pass


@pytest.mark.parametrize("target", [HookedTransformer, transformers])
def test_the_message_names_the_package_and_its_version(target: Any) -> None:
    message = r"of transformer[s-][\w-]* \d+\.\d+.* has no old_name"
    with pytest.raises(HostError, match=message), replaced(target, old_name=1):
        pass


def test_an_attribute_that_is_there_is_not_lost_if_another_is_not() -> None:
    before = os.getcwd
    with pytest.raises(HostError), replaced(os, getcwd=None, no_such_function=1):
        pass
    assert os.getcwd is before
