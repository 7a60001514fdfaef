"""Runs on a Ray cluster: two nodes on this machine, with one CPU each, give what local training gives."""

import importlib.util
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from helpers import toy_faces
from torch import nn

from fer_utils.augment import Augment
from fer_utils.errors import TrainingError
from fer_utils.training import Run, TrainConfig, cluster, fit, fit_all, seed_runs
from fer_utils.training.tasks import classification

TRAIN, VAL = toy_faces(160, 0), toy_faces(64, 1)
CONFIG = TrainConfig(
    epochs=2,
    batch_size=32,
    lr=0.02,
    ema=0.8,
    class_weights="balanced",
    augment=Augment(alternate=True, erase=0.5, mixup=0.4, cutmix=1.0),
    precision="fp32",
)


def network_class() -> type[nn.Module]:
    """A class that no worker can import, as those that are defined in a notebook."""

    class Small(nn.Module):
        """Dies in its 8th step of training, in the second epoch, unless the file `died` exists: it makes it first."""

        def __init__(self, died: Path | None = None) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 6, stride=6), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 7)
            )
            self.died, self.steps = died, 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.steps += self.training
            if self.died and self.steps == 8 and not self.died.exists():
                self.died.touch()
                os._exit(1)
            return self.layers(images)

    return Small


def new_runs(seeds=(0, 1, 2), network=None) -> list[Run]:
    return seed_runs(network or network_class(), TRAIN, VAL, CONFIG, seeds)


def require_same_weights(model: nn.Module, expected: nn.Module) -> None:
    weights, expected_weights = model.state_dict(), expected.state_dict()
    assert list(weights) == list(expected_weights)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


def require_same_outcome(runs: list[Run], results: list, expected_runs: list[Run], expected: list) -> None:
    for run, result, expected_run, expected_result in zip(runs, results, expected_runs, expected, strict=True):
        require_same_weights(run.model, expected_run.model)
        assert result.history.drop(columns="seconds").equals(expected_result.history.drop(columns="seconds"))
        assert (result.precision, result.best_epoch) == (expected_result.precision, expected_result.best_epoch)


# ---- Without Ray ----


@pytest.fixture
def no_ray(monkeypatch):
    """As if Ray were not installed."""
    monkeypatch.setitem(sys.modules, "ray", None)


def test_without_the_variable_nothing_asks_for_ray(no_ray, monkeypatch):
    monkeypatch.delenv("FER_RAY", raising=False)
    assert len(fit_all(new_runs((0, 1)))) == 2


def test_missing_ray_is_a_sentence_that_says_how_to_install_it(no_ray, monkeypatch):
    monkeypatch.setenv("FER_RAY", "auto")
    with pytest.raises(TrainingError, match=r"^FER_RAY is set, but Ray is not installed: pip install ray,"):
        fit_all(new_runs())


def test_runs_with_a_callback_are_trained_here(no_ray, monkeypatch):
    monkeypatch.setenv("FER_RAY", "auto")
    rows = []
    fit(network_class()(), TRAIN, VAL, CONFIG, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]


# ---- With Ray, but without a cluster ----


@pytest.fixture(scope="module")
def ray():
    """The module ray, which sends nothing anywhere, holds no lines back, and keeps to a folder of its own."""
    if not importlib.util.find_spec("ray"):
        pytest.skip("Ray is not installed: pip install ray")
    with (
        # In /tmp, because the names of sockets must stay below 100 characters.
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        (Path(folder) / "ray").mkdir()
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DEDUP_LOGS", "0")  # before it is imported
        patch.delenv("RAY_ADDRESS", raising=False)
        import ray

        yield ray
        ray.shutdown()


def test_auto_starts_no_cluster_but_says_how(ray, monkeypatch):
    if any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"])):
        pytest.skip("a Ray cluster runs on this machine")
    monkeypatch.setenv("FER_RAY", "auto")
    with pytest.raises(TrainingError, match=r"FER_RAY is auto, but Ray cannot connect .*; run `ray start --head`"):
        fit_all(new_runs())
    assert not ray.is_initialized()


def test_an_address_where_nobody_answers_ends_in_time(ray, monkeypatch):
    monkeypatch.setenv("FER_RAY", "127.0.0.1:1")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 6)
    start = time.monotonic()
    with pytest.raises(TrainingError, match=r"FER_RAY is 127\.0\.0\.1:1, but .* \(no answer within 6 seconds\)"):
        fit_all(new_runs())
    assert time.monotonic() - start < 12 and not ray.is_initialized()


# ---- With a cluster ----


def start_nodes(attempts: int = 3):
    """Two nodes with one CPU each. Ray gives a node 30 seconds to start, which may be too few on a busy machine."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
    except Exception:
        nodes.shutdown()
        if attempts == 1:
            raise
        return start_nodes(attempts - 1)
    return nodes


@pytest.fixture(scope="module")
def nodes(ray):
    """The address of a cluster."""
    nodes = start_nodes()
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def on_cluster(nodes, monkeypatch):
    """fit_all on the cluster; outside of it, training is local, and with one thread in both cases."""

    def on_cluster(runs: list[Run]) -> list:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FER_RAY", nodes)
            patch.setattr(cluster, "CONNECT_SECONDS", 120)
            return fit_all(runs)

    monkeypatch.delenv("FER_RAY", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield on_cluster
    torch.set_num_threads(threads)


def printed_within(seconds: float, capsys, text: str) -> bool:
    """Whether a text is printed in time: lines of workers come when they come."""
    end, output = time.monotonic() + seconds, ""
    while text not in output and time.monotonic() < end:
        time.sleep(0.1)
        output += capsys.readouterr().out
    return text in output


def test_results_and_weights_are_those_of_local_training_in_order(on_cluster, ray, monkeypatch, capsys):
    stored = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda array: stored.append(array) or put(array))
    runs, local = new_runs(), new_runs()
    results = on_cluster(runs)
    assert [id(array) for array in stored] == [id(array) for array in (*TRAIN, *VAL)]  # once for all three runs
    assert printed_within(60, capsys, "epoch   2/2  loss")
    require_same_outcome(runs, results, local, fit_all(local))


def test_run_of_a_killed_worker_goes_on_from_its_checkpoint(on_cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [run], [local] = new_runs((0,), network=lambda: network_class()(tmp_path / "died")), new_runs((0,))
    run.checkpoint = Path("run.pt")  # relative to the working directory of the caller
    results = on_cluster([run])
    assert (tmp_path / "died").exists() and (tmp_path / "run.pt").exists()
    assert printed_within(60, capsys, "resumed after epoch 1 from run.pt")
    require_same_outcome([run], results, [local], fit_all([local]))


def test_diverging_run_ends_alone(on_cluster, capsys):
    runs, local = new_runs(), new_runs()
    runs[0].task = replace(classification(), loss=lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"^the loss is nan at step 1 of epoch 1: lower the learning rate"):
        on_cluster(runs)
    assert "seed 0: the loss is nan at step 1" in (printed := capsys.readouterr().out)
    assert "the other runs go on" in printed
    fit_all(local)
    for run, expected in zip(runs[1:], local[1:], strict=True):
        require_same_weights(run.model, expected.model)


def test_more_threads_than_a_node_has_cpus_are_refused(on_cluster, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with pytest.raises(TrainingError, match="a run needs 4 CPU, and no machine of the Ray cluster has it"):
        on_cluster(new_runs())


def test_other_errors_are_raised_as_they_are_and_cancel_what_still_trains(on_cluster, ray, tmp_path):
    failing, endless = new_runs((0, 1))
    endless.config, endless.checkpoint = replace(CONFIG, epochs=1_000_000), tmp_path / "endless.pt"

    def fail_once_both_train(logits, labels):
        while not endless.checkpoint.exists():
            time.sleep(0.1)
        raise ValueError("as it is")

    failing.task = replace(classification(), loss=fail_once_both_train)
    with pytest.raises(ValueError, match="as it is"):
        on_cluster([failing, endless])
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < end:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == 2
