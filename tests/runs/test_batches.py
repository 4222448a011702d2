"""Training batches are SAELens's own, and go on from a checkpoint as if nothing had happened."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ActivationError
from sae_lens_bipolar.files.names import MIXING_BUFFER
from sae_lens_bipolar.runs.batches import ResumableBatches

HOOKS = {"blocks.0.hook_mlp_out": 32, "blocks.1.attn.hook_z": 32}


def make_store(model: HookedTransformer, mixing: float = 0.5, special: int | None = None):
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 60, (90, 16), generator=draw).tolist()
    return ActivationsStore.from_config_multi_hook(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows}),
        hook_names=list(HOOKS),
        hook_d_ins=HOOKS,
        context_size=16,
        n_batches_in_buffer=10,
        train_batch_size_tokens=24,
        store_batch_size_prompts=3,
        activations_mixing_fraction=mixing,
        exclude_special_tokens=None if special is None else torch.tensor([special]),
        prepend_bos=False,
    )


def make_batches(store: ActivationsStore, checkpoint: Path | None = None) -> ResumableBatches:
    copies = {hook: (hook, store.device) for hook in HOOKS}
    return ResumableBatches(store, 5, copies, 0, lambda: 1, checkpoint)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[hook], b[hook]) for hook in a)


@pytest.mark.parametrize("mixing", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("special", [None, 7])
def test_batches_are_those_of_saelens(tiny_model, mixing, special) -> None:
    torch.manual_seed(5)
    theirs = make_store(tiny_model, mixing, special).get_multi_hook_data_loader()
    expected = [next(theirs) for _ in range(50)]
    ours = make_batches(make_store(tiny_model, mixing, special))
    for batch in expected:
        assert equal(next(ours), batch)
    assert all(expected[0][hook].shape == (24, width) for hook, width in HOOKS.items())


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 23])
def test_a_checkpoint_goes_on_where_it_was(tiny_model, tmp_path: Path, taken: int) -> None:
    store = make_store(tiny_model)
    batches = make_batches(store)
    for _ in range(taken):
        next(batches)
    store.save_to_checkpoint(tmp_path)
    batches.save(tmp_path)
    batches.reseed()
    expected = [next(batches) for _ in range(30)]  # into the second epoch

    torch.manual_seed(99)
    resumed = make_store(tiny_model)
    resumed.load_from_checkpoint(tmp_path)
    again = make_batches(resumed, tmp_path)
    assert all(equal(next(again), batch) for batch in expected)
    assert resumed.n_dataset_processed == store.n_dataset_processed


def test_saving_reads_nothing(tiny_model, tmp_path: Path) -> None:
    store = make_store(tiny_model)
    batches = make_batches(store)
    next(batches)
    before = store.n_dataset_processed
    batches.save(tmp_path)
    batches.reseed()
    for _ in range(3):  # what is left of the 112 tokens set free at first
        next(batches)
    assert store.n_dataset_processed == before
    assert (tmp_path / MIXING_BUFFER).is_file()


def test_a_checkpoint_without_a_buffer_begins_with_an_empty_one(tiny_model, tmp_path) -> None:
    fresh = next(make_batches(make_store(tiny_model)))
    other = next(make_batches(make_store(tiny_model), tmp_path))
    assert equal(fresh, other)


def test_a_batch_that_is_not_finite_is_named(tiny_model, monkeypatch) -> None:
    store = make_store(tiny_model)
    alone = store.get_multi_hook_activations

    def broken(tokens):
        found = alone(tokens)
        found["blocks.1.attn.hook_z"][0, 3] = float("inf")
        return found

    monkeypatch.setattr(store, "get_multi_hook_activations", broken)
    batches = make_batches(store)
    with pytest.raises(ActivationError, match=r"blocks.1.attn.hook_z .* training batch \d"):
        list(islice(batches, 9))
