"""Labelled text is what the suites ask for: classes, ratings, splits, and SAEBench reads it."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recipes.common import labelled_text


def reviews(n: int) -> list[tuple[str, bool]]:
    """`n` texts a kind of film and label."""
    words = ("horror", "comedy", "television", "children", "crime", "novel", "song")
    return [
        (f"Number {i} is a film of {word}<br /><br />that I {'liked' if good else 'did not like'}.",
         good)
        for i in range(n)
        for word in words
        for good in (False, True)
    ]  # fmt: skip


def test_kinds_ratings_and_splits(tmp_path: Path) -> None:
    counts = labelled_text.write_reviews(tmp_path, reviews(40))
    rows = {}
    for split in ("train", "test"):
        lines = (tmp_path / labelled_text.REPOSITORY / f"{split}.jsonl").read_text().splitlines()
        rows[split] = [json.loads(line) for line in lines]
    everything = rows["train"] + rows["test"]
    assert len(everything) == 40 * 7 * 2 == len({row["text"] for row in everything})
    assert Counter((row["category"], row["rating"]) for row in everything) == {
        (kind.category, rating): 40 for kind in labelled_text.KINDS for rating in (1.0, 5.0)
    }
    assert 0.1 < len(rows["test"]) / len(everything) < 0.3
    for row in everything:
        assert (row["rating"] == 5.0) == ("that I liked" in row["text"])
        assert "<br" not in row["text"]
    more = labelled_text.write_reviews(tmp_path / "more", reviews(40), held_out=0.5)
    held_out = {split: sum(n for (s, _), n in more.items() if s == split) for split in rows}
    assert 0.4 < held_out["test"] / sum(held_out.values()) < 0.6
    by_kind = Counter(row["category"] for row in rows["test"])
    assert {counts["test", kind.name] for kind in labelled_text.KINDS} == set(by_kind.values())


def test_only_reviews_that_name_one_kind_in_their_opening(tmp_path: Path) -> None:
    far = "x" * labelled_text.NAMED_WITHIN
    given = [
        *(("A horror comedy.", True), ("A film.", True), (f"{far} comedy", True)),
        *(("Comedies!", True), ("Comedies!", True), ("A songbird.", False)),
    ]
    counts = labelled_text.write_reviews(tmp_path, [*given, *reviews(5)])
    assert sum(counts.values()) == 5 * 7 * 2 + 1


def test_the_order_given_does_not_matter(tmp_path: Path) -> None:
    given = reviews(6)
    labelled_text.write_reviews(tmp_path / "a", given)
    labelled_text.write_reviews(tmp_path / "b", given[::-1])
    for split in ("train", "test"):
        name = f"{labelled_text.REPOSITORY}/{split}.jsonl"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saebench_reads_it_in_place_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    from sae_lens_bipolar.saebench import BenchConfig
    from sae_lens_bipolar.saebench.assets import check_assets
    from sae_lens_bipolar.saebench.host.hub_data import readable_data

    name = labelled_text.REPOSITORY
    labelled_text.write_reviews(tmp_path, reviews(40))
    with readable_data(False, str(tmp_path)):
        train, test = dataset_utils.get_multi_label_train_test_data(name, 40, 8, random_seed=0)
    assert {len(texts) for texts in train.values()} == {20}
    wanted = dataset_info.chosen_classes_per_dataset[name]
    assert set(wanted) < set(train) == set(test)
    # The first SCR pair is books against music.
    categories = dataset_info.amazon_category_dict
    pair = ScrAndTppEvalConfig().column1_vals_lookup[name][0]
    kinds = {kind.category: kind.name for kind in labelled_text.KINDS}
    assert [kinds[categories[one]] for one in pair] == ["book", "music"]
    config = BenchConfig(
        suites=("tpp", "scr"), ablation_datasets=(name,), data_folder=str(tmp_path)
    )
    assert [asset.problem for asset in check_assets(config, [])] == [None]


@pytest.mark.slow
def test_the_real_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path))
    folder = labelled_text.movie_reviews()
    lines = (folder / labelled_text.REPOSITORY / "train.jsonl").read_text().splitlines()
    smallest = min(Counter((r["category"], r["rating"]) for r in map(json.loads, lines)).values())
    assert (len(lines), smallest) == (4292, 192)
    assert labelled_text.movie_reviews() == folder
    other = labelled_text.movie_reviews(held_out=0.4)
    held_out = (other / labelled_text.REPOSITORY / "test.jsonl").read_text().splitlines()
    assert len(held_out) == 2028


def test_all_reviews_come_once_with_label_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheel.zip"
    with zipfile.ZipFile(wheel, "w") as archive:
        rows = ["text,label,source", '"A fine<br /><br />film, really",1,imdb', "dull,0,imdb"]
        rows += ["dull,0,imdb", '"  "  ,0,imdb', "so  so,1,rotten_tomatoes"]
        archive.writestr("movie_reviews/data/combined_movie_reviews.csv", "\n".join(rows) + "\n")
    opened = []

    @contextmanager
    def open_here(*_: object) -> Iterator[zipfile.ZipFile]:
        opened.append(wheel)
        with zipfile.ZipFile(wheel) as archive:
            yield archive

    monkeypatch.setattr(labelled_text, "open_wheel", open_here)
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path / "cache"))
    found = labelled_text.labelled_reviews()
    assert found == [
        labelled_text.Review("A fine film, really", True, "imdb"),
        labelled_text.Review("dull", False, "imdb"),
        labelled_text.Review("so so", True, "rotten_tomatoes"),
    ]
    assert labelled_text.labelled_reviews() == found
    assert len(opened) == 1  # the second call reads what the first kept
