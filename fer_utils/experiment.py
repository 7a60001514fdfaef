"""What every experiment of the course does around its question: train each model for several seeds, evaluate, compare.

A notebook describes its models and recipes and reads the results; the bookkeeping is here.
"""

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import nn

from fer_utils import metrics, plots
from fer_utils.cost import count_gmacs, count_params
from fer_utils.data import EMOTIONS, FER2013, copies_in_train
from fer_utils.models import build_model
from fer_utils.models.weights import checksum
from fer_utils.predict import VIEWS, Predictions, predict_logits
from fer_utils.report import Report
from fer_utils.training import FitResult, Run, TrainConfig, fit_all, seed_runs
from fer_utils.training.checkpoints import checkpoint_file
from fer_utils.training.tasks import Task

# Columns of the summary that a notebook's own table of results leaves out.
NOT_IN_RESULTS = ("notebook", "profile", "device", "params", "train_seconds", "images_per_second")


@dataclass
class Trained:
    """One model of a report: a network trained with one recipe, once per seed."""

    name: str  # of the model in tables
    spec: dict  # which network it is, see models.build
    seeds: tuple[int, ...]
    histories: list[pd.DataFrame]  # one per seed, as in FitResult
    models: list[nn.Module]  # one per seed, with the weights of the best epoch on val; [] once they are let go
    train_images: int  # number of training images
    views: str = "none"  # how each image is shown at test time, a key of predict.VIEWS
    logits: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (S,n,7), see Experiment.predict
    members: tuple["Trained", ...] = ()  # of an ensemble, see Experiment.ensemble

    @property
    def val_accuracy(self) -> np.ndarray:
        """Accuracy on val in the best epoch of each seed (S,), as measured during training."""
        return np.array([history.val_accuracy.max() for history in self.histories])

    @property
    def best_epochs(self) -> list[int]:
        """The best epoch of each seed on val, counted from 1."""
        return [int(history.val_accuracy.argmax()) + 1 for history in self.histories]

    @property
    def epochs(self) -> float:
        """Epochs that were trained, mean over seeds: fewer than planned where training stopped early."""
        return float(np.mean([len(history) for history in self.histories]))

    @property
    def seconds(self) -> float:
        """Seconds of training without validation, mean over seeds."""
        return float(np.mean([history.seconds.sum() for history in self.histories]))

    @property
    def effort(self) -> dict[str, float]:
        """Epochs, train_seconds and images_per_second for the summary; an ensemble adds up the seconds of its members.

        Its members may have been trained for different numbers of epochs, so it has no number of its own.
        """
        if self.members:
            seconds = sum(member.seconds * len(member.seeds) for member in self.members)
            return {"epochs": np.nan, "train_seconds": seconds, "images_per_second": np.nan}
        speed = self.epochs * self.train_images / self.seconds
        return {"epochs": round(self.epochs), "train_seconds": self.seconds, "images_per_second": speed}

    def predicted(self, split: str, seed: int = 0) -> np.ndarray:
        """Predicted labels (n,) of one seed, by its position."""
        return self.logits[split][seed].argmax(1)


class Experiment:
    """The experiment of one notebook: its data set, device and report."""

    def __init__(self, report: Report, dataset: FER2013, device: torch.device) -> None:
        """report: where results go. dataset: splits train, val and test. device: to train and predict on."""
        self.report, self.dataset, self.device = report, dataset, device
        self.train_set, self.val_set = dataset.subset("train"), dataset.subset("val")
        images = self.val_set[0]
        self.image_shape = (3, *images.shape[2:]) if images.ndim == 4 else (1, *images.shape[1:])
        has_copy = copies_in_train(dataset)
        self.has_copy = {split: has_copy[dataset.where(split)] for split in ("val", "test")}

    # --- Train --------------------------------------------------------------------------------------------------------

    def runs(
        self,
        name: str,
        spec: dict,
        config: TrainConfig,
        seeds: Sequence[int],
        train: tuple[np.ndarray, np.ndarray] | None = None,
        val: tuple[np.ndarray, np.ndarray] | None = None,
        backbone: dict[str, torch.Tensor] | None = None,
        task: Task | None = None,
        resumable: bool = True,
        **start: nn.Module | Mapping[str, torch.Tensor] | None,
    ) -> list[Run]:
        """One run per seed, each with a checkpoint of its own: nothing is trained twice, and a stop loses little.

        train, val: images and targets; None: the whole split. backbone: weights that the backbone starts from. task:
        None: to classify emotions. resumable: whether to write checkpoints; large networks that train for a short time
        save disk space without. start: what build_model takes besides the spec, such as imagenet=weights.
        """
        train, val = train or self.train_set, val or self.val_set

        def build() -> nn.Module:
            model = build_model(spec, **copy.deepcopy(start))  # runs must not share a network
            if backbone is not None:
                model.backbone.load_state_dict(backbone)
            return model

        begins_with = {key: checksum(weights) for key, weights in ({"backbone": backbone} | start).items()}
        data_key = f"{self.dataset.fingerprint} {zlib.crc32(train[1])} {spec} {begins_with} {task.name if task else ''}"
        folder = self.report.out / "training"

        def checkpoint(own: TrainConfig) -> Path:
            return checkpoint_file(folder, name, own, data_key)

        return seed_runs(build, train, val, config, seeds, checkpoint if resumable else None, task, name)

    def train(self, runs: Mapping[str, Sequence[Run]]) -> dict[str, Trained]:
        """Train all runs of all models in one list: on a GPU several side by side, on a CPU one after another.

        Each trained network gets an attribute `origin`, which save_weights saves along with its weights.
        """
        flat = [run for group in runs.values() for run in group]
        results = fit_all(flat, self.device)
        for run, result in zip(flat, results, strict=True):
            run.model.origin = self.origin(run, result)
        results = iter(results)
        return {name: trained(name, group, [next(results) for _ in group]) for name, group in runs.items()}

    def origin(self, run: Run, result: FitResult) -> dict[str, object]:
        """Describe where a trained network comes from: data, date, settings, and its best result on val."""
        best = result.history.iloc[result.best_epoch - 1]
        return {
            "data": self.dataset.form,
            "fingerprint": self.dataset.fingerprint,
            "train_images": len(run.train[0]),
            "val_images": len(run.val[0]),
            "metric": result.task.metric,
            "val": float(best[f"val_{result.task.metric}"]),
            "date": date.today().isoformat(),
            "settings": json.loads(json.dumps(asdict(run.config))),
        }

    # --- Evaluate -----------------------------------------------------------------------------------------------------

    def predict(self, model: Trained, split: str) -> np.ndarray:
        """Logits (S,n,7) of every seed on one split, with the model's views; kept in model.logits.

        They are rounded as they are published, in half precision, so that tables and published logits agree exactly.
        """
        if model.members:
            every_seed = np.concatenate([self.logits_of(member, split) for member in model.members])  # (S,n,7)
            found = [log_softmax(every_seed, axis=2).mean(0)]
        else:
            images = self.dataset.subset(split)[0]
            found = [predict_logits(network, images, self.device, views=model.views) for network in model.models]
        model.logits[split] = np.stack(found).astype(np.float16).astype(np.float32)
        return model.logits[split]

    def logits_of(self, model: Trained, split: str) -> np.ndarray:
        """Return the logits (S,n,7) of a model on one split; they are computed only once."""
        return model.logits[split] if split in model.logits else self.predict(model, split)

    def ensemble(self, name: str, members: Sequence[Trained]) -> Trained:
        """Combine all seeds of several models: equal weights of their log-probabilities. Costs and seconds add up."""
        networks = [network for member in members for network in member.models]
        return Trained(name, None, (0,), [], networks, len(self.train_set[0]), members=tuple(members))

    def cost_of(self, model: Trained) -> dict[str, float]:
        """Count params and gmacs of a model with its views; for an ensemble, the sums over all networks."""
        if model.members:
            costs = pd.DataFrame([self.cost_of(member) for member in model.members for _ in member.seeds])
            return {"params": int(costs.params.sum()), "gmacs": costs.gmacs.sum()}
        network = model.models[0] if model.models else build_model(model.spec)
        gmacs = len(VIEWS[model.views]) * count_gmacs(network, self.image_shape)
        return {"params": count_params(network), "gmacs": gmacs}

    def publish(self, models: Sequence[Trained], splits: Sequence[str] = ("val", "test")) -> pd.DataFrame:
        """Write the summary rows and the logits of each model; returns the rows as a table.

        splits: which rows to write; the logits are always those of val and test. Logits that are not there yet are
        computed. The first network of each model is counted for its cost. In the summary, models of RAF-DB stand next
        to models that have seen FER2013: their names end in _on_rafdb there.
        """
        on_rafdb = "_on_rafdb" if self.dataset.form == "rafdb" else ""
        rows_before = len(self.report.summary_rows)
        for model in models:
            cost = self.cost_of(model) | model.effort
            for split in splits:
                labels, logits = self.dataset.subset(split)[1], self.logits_of(model, split)
                row = cost | metrics.summarize(labels, logits, self.has_copy[split])
                self.report.summary(model=model.name + on_rafdb, split=split, **row)
            predictions = Predictions(
                self.logits_of(model, "val"),
                self.logits_of(model, "test"),
                model.seeds,
                self.dataset.fingerprint,
                model.spec,
                model.views,
            )
            self.report.predictions(f"{self.report.number}_{model.name}", predictions)
        rows = pd.DataFrame(self.report.summary_rows[rows_before:])
        rows["model"] = rows.model.str.removesuffix(on_rafdb)
        return rows.drop(columns=list(NOT_IN_RESULTS))

    def correct(self, model: Trained, split: str = "test") -> np.ndarray:
        """Which predictions are correct: (S,n) bool."""
        return model.logits[split].argmax(2) == self.dataset.subset(split)[1]

    # --- Compare ------------------------------------------------------------------------------------------------------

    def compare(self, a: Trained, b: Trained, rows: np.ndarray | None = None) -> dict[str, object]:
        """Is model a better than b on test? Two questions, two units.

        About the method, whose unit is the seed: metrics.paired_difference over seeds that both share, and a verdict.
        About these very networks, whose unit is the image: a bootstrap interval of the mean difference, and McNemar's
        test of the first seed's pair (only_a, only_b: test images that only one of the two gets right).

        rows: which test images to compare on, as row numbers or (n,) bool, such as those without a copy; None: all.
        """
        rows = slice(None) if rows is None else rows
        labels = self.dataset.subset("test")[1][rows]
        correct_a, correct_b = self.correct(a)[:, rows], self.correct(b)[:, rows]
        test = metrics.paired_difference(correct_a.mean(1), correct_b.mean(1))
        per_image = correct_a.mean(0) - correct_b.mean(0)
        low, high = metrics.bootstrap_ci(lambda drawn: per_image[drawn].mean(), len(per_image))
        pair = metrics.mcnemar(labels, a.predicted("test")[rows], b.predicted("test")[rows])
        return {
            "n": len(labels),
            "accuracy": correct_a.mean(),
            "accuracy_against": correct_b.mean(),
            **test,
            "images_ci_low": low,
            "images_ci_high": high,
            "only_a": pair["only_a"],
            "only_b": pair["only_b"],
            "mcnemar_p": pair["p_value"],
            "verdict": metrics.seeds_verdict(test),
        }

    def report_errors(self, model: Trained) -> pd.DataFrame:
        """Tables and figures of where a model's first seed is right and wrong on test; returns the recalls.

        NN_recall (table and figure), NN_confusion_matrix, and NN_worst_mistakes: the confident errors.
        """
        number, seed = self.report.number, model.seeds[0]
        labels = self.dataset.subset("test")[1]
        predicted, where = model.predicted("test"), f"test (n = {len(labels):,}), {model.name}, seed {seed}"
        recall = metrics.per_class_recall(labels, predicted)
        self.report.table(recall, f"{number}_recall", f"Recall of each emotion on {where}; Wilson 95 % intervals.")
        self.report.figure(
            plots.plot_recall(recall), f"{number}_recall", data=recall, caption=f"Recall of each emotion on {where}.",
            alt="Bar chart of recall per emotion with 95 % intervals; the dashed line is accuracy over all images.",
        )  # fmt: skip
        confusion = metrics.confusion_matrix(labels, predicted)
        self.report.figure(
            plots.plot_confusion_matrix(confusion), f"{number}_confusion_matrix", data=confusion.reset_index(),
            caption=f"Confusion matrix on {where}: share of each label, and counts.",
            alt="Seven by seven confusion matrix; the diagonal holds the correct predictions.",
        )  # fmt: skip
        figure, table = self.plot_mistakes(model)
        self.report.figure(
            figure, f"{number}_worst_mistakes", data=table,
            caption=f"The most confident errors on {where}: label, prediction, and confidence.",
            alt="Faces with their label and the network's confident, different prediction.",
        )  # fmt: skip
        assert recall.n.iloc[:-1].sum() == confusion.values.sum() == len(labels)
        return recall

    def plot_mistakes(self, model: Trained, label: str = "any", count: int = 12) -> tuple[plots.Figure, pd.DataFrame]:
        """The most confident errors of the first seed on test, of one label or of any: the figure and what it shows."""
        images, labels = self.dataset.subset("test")
        probs = torch.softmax(torch.from_numpy(model.logits["test"][0]), 1).numpy()
        predicted = probs.argmax(1)
        considered = np.ones(len(labels), bool) if label == "any" else labels == EMOTIONS.index(label)
        wrong = np.flatnonzero(considered & (predicted != labels))
        worst = wrong[np.argsort(-probs.max(1)[wrong])][:count]
        titles = [f"label: {EMOTIONS[labels[i]]}\n{EMOTIONS[predicted[i]]} {probs[i].max():.0%}" for i in worst]
        names = self.dataset.names[self.dataset.where("test")][worst]
        return plots.plot_faces(images[worst], titles, columns=6), pd.DataFrame({"name": names, "title": titles})


def trained(name: str, runs: Sequence[Run], results: Sequence[FitResult]) -> Trained:
    """The runs of one model, after training."""
    models = [run.model.eval() for run in runs]
    seeds = tuple(run.config.seed for run in runs)
    return Trained(name, models[0].spec, seeds, [r.history for r in results], models, len(runs[0].train[0]))
