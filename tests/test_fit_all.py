"""Several runs in one list: in order, each as if it were alone, and none stopped by another."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import toy_faces
from torch import nn

from fer_utils.augment import Augment
from fer_utils.device import set_seed
from fer_utils.errors import TrainingError
from fer_utils.training import Run, TrainConfig, fit, fit_all, loop
from fer_utils.training.streams import CpuStream

TRAIN, VAL = toy_faces(96, 0), toy_faces(40, 1)
CONFIG = TrainConfig(epochs=3, batch_size=32, lr=0.02, precision="fp32", augment=Augment(mixup=0.2))


class Small(nn.Module):
    """Dropout and batch norm, so that neighbors would disturb each other if anything were shared."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 6, stride=6), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 7)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def new_run(name: str, **options) -> Run:
    config = replace(CONFIG, **options)
    set_seed(config.seed)
    return Run(Small(), TRAIN, VAL, config, name=name)


def different_runs() -> list[Run]:
    """Of different lengths, with what waits for val, and with everything that draws random numbers."""
    return [
        new_run("plain"),
        new_run("stopped early", seed=1, epochs=9, patience=1, lr=0.3),
        new_run("plateau", seed=2, epochs=5, schedule="plateau", plateau_patience=0, lr=0.2),
        new_run("averaged", seed=3, epochs=2, ema=0.9, optimizer="adamw", lr=0.003),
    ]


def outcome(run: Run, result: loop.FitResult) -> tuple:
    weights = [tensor.tolist() for tensor in run.model.state_dict().values()]
    return weights, result.history.drop(columns="seconds").to_dict("list")


@pytest.fixture(scope="module")
def alone() -> list[tuple]:
    """What each of different_runs becomes without the others."""
    return [outcome(run, fit(run.model, run.train, run.val, run.config)) for run in different_runs()]


def test_together_equals_alone_in_the_order_of_the_list(alone):
    runs = different_runs()
    assert [outcome(*pair) for pair in zip(runs, fit_all(runs), strict=True)] == alone
    lengths = [len(history["epoch"]) for _, history in alone]
    assert len(set(lengths)) > 1 and lengths[1] < 9  # the second did stop early


class SlowStream(CpuStream):
    """A CPU that behaves like a queue: random numbers of its own, and work that is done only after a while."""

    log: list[str]

    def __init__(self) -> None:
        self.state = torch.get_rng_state()
        self.polls = 0

    @contextlib.contextmanager
    def active(self):
        shared = torch.get_rng_state()
        torch.set_rng_state(self.state)
        yield
        self.state = torch.get_rng_state()
        torch.set_rng_state(shared)

    def is_done(self, event: float) -> bool:
        self.polls += 1
        return self.polls % 4 == 0


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_side_by_side_equals_alone(alone, at_once, monkeypatch):
    """Here two and four take turns step by step, as on a GPU, and wait for their numbers while the others go on."""
    seen = []

    def room(self, active, ended):
        seen.append(active)
        return active < at_once

    monkeypatch.setattr(loop, "STEPS_PER_TURN", 1)
    monkeypatch.setattr(loop, "open_stream", lambda device: SlowStream())
    monkeypatch.setattr(loop.Room, "for_one_more", room)
    runs = different_runs()
    assert [outcome(*pair) for pair in zip(runs, fit_all(runs), strict=True)] == alone
    assert max(seen) >= at_once - 1


def test_runs_take_turns(monkeypatch, capsys):
    monkeypatch.setattr(loop, "open_stream", lambda device: SlowStream())
    monkeypatch.setattr(loop.Room, "for_one_more", lambda self, active, ended: True)
    fit_all([new_run("a"), new_run("b", seed=1)])
    lines = [line.split("/")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"{name}: epoch   {epoch}" for epoch in (1, 2, 3) for name in "ab"]


@pytest.mark.parametrize("least, captured", [(9, 1), (10, 0)])
def test_a_step_is_captured_once_and_only_where_that_pays(least, captured, monkeypatch):
    captures = []
    monkeypatch.setattr(CpuStream, "capture", lambda self, step: captures.append(step) or step)
    monkeypatch.setattr(loop, "LEAST_STEPS", least)
    fit_all([new_run("of nine steps")])
    assert len(captures) == captured


def test_one_that_diverges_ends_alone_with_its_message(tmp_path, capsys):
    runs = [new_run("first"), new_run("hot", lr=1e3, seed=1), new_run("last", seed=2)]
    for run in runs:
        run.checkpoint = tmp_path / f"{run.name}.pt"
    runs[1].model.layers[4].weight.data.fill_(1e38)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step 1 of epoch 1: .*lr is 1000"):
        fit_all(runs)
    printed = capsys.readouterr().out
    assert "hot: the loss is" in printed and "the other runs go on" in printed
    assert printed.index("the other runs go on") < printed.index("last: epoch   1/3")
    for run in (runs[0], runs[2]):
        assert len(torch.load(run.checkpoint, weights_only=True)["history"]) == 3
        expected = fit(new_run("", seed=run.config.seed).model, TRAIN, VAL, run.config).history
        assert torch.load(run.checkpoint, weights_only=True)["history"][-1]["val_loss"] == expected.val_loss.iloc[-1]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in runs[1].model.parameters())


def test_of_several_reasons_the_first_in_the_list_is_raised():
    runs = [new_run("a", lr=1e3), new_run("b", lr=2e2)]
    for run in runs:
        run.model.layers[4].weight.data.fill_(1e38)
    with pytest.raises(TrainingError, match="lr is 1000"):
        fit_all(runs)


def test_a_list_without_runs_has_no_results():
    assert fit_all([]) == []


def test_shared_arrays_are_copied_and_summed_once(monkeypatch):
    summed = []
    real = loop.zlib.crc32
    monkeypatch.setattr(loop, "zlib", SimpleNamespace(crc32=lambda array: summed.append(1) or real(array)))
    fit_all([new_run("a", epochs=1), new_run("b", epochs=1, seed=1), new_run("c", epochs=1, seed=2)])
    assert len(summed) == 4  # images and targets of train and val


GB = 2**30


class Gpu:
    """The memory of a GPU, and what each of its runs takes."""

    def __init__(self, monkeypatch, total: float, each: float) -> None:
        self.total, self.each, self.active, self.looks = total, each, 0, 0
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self.free)

    def free(self, device: torch.device) -> tuple[int, int]:
        self.looks += 1
        return int((self.total - self.active * self.each) * GB), int(self.total * GB)

    def fill(self, room: loop.Room) -> int:
        """Start runs as long as there is room."""
        while room.for_one_more(self.active, 0):
            self.active += 1
        return self.active


@pytest.mark.parametrize("total, each, fit_in", [(80, 3, loop.AT_ONCE), (8, 1, 6), (8, 2, 3), (8, 5, 1), (8, 20, 1)])
def test_on_a_gpu_three_quarters_of_the_free_memory_decide(total, each, fit_in, monkeypatch):
    gpu = Gpu(monkeypatch, total, each)
    assert gpu.fill(loop.Room(torch.device("cuda"), None)) == fit_in


def test_a_number_that_is_given_overrides_the_rule(monkeypatch):
    assert Gpu(monkeypatch, 8, 5).fill(loop.Room(torch.device("cuda"), 3)) == 3
    assert Gpu(monkeypatch, 80, 1).fill(loop.Room(torch.device("cuda"), 9)) == 9


def test_the_memory_is_looked_at_only_when_something_has_changed(monkeypatch):
    gpu = Gpu(monkeypatch, 8, 5)
    room = loop.Room(torch.device("cuda"), None)
    gpu.fill(room)
    looks = gpu.looks
    assert not any(room.for_one_more(1, 0) for _ in range(100)) and gpu.looks == looks
    gpu.active, gpu.each = 1, 1  # a small one has taken the place of a large one that has ended
    assert room.for_one_more(1, 1) and gpu.looks == looks + 1


@pytest.mark.parametrize(
    "active, advice",
    [
        (1, "too little memory for batch_size 32; try batch_size 16"),
        (3, "3 runs at once with batch_size 32; try at_once=2 or batch_size 16"),
    ],
)
def test_too_little_memory_says_what_to_try(active, advice):
    def advance():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    failure = loop.advance(SimpleNamespace(advance=advance, run=new_run("")), active)
    assert isinstance(failure, TrainingError) and advice in str(failure)
