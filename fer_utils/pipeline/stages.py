"""The stages of a full run in running order, one notebook each. This file only declares them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PROFILES = ("sample", "cpu", "full")

# Profile cpu is sized for 7.5 hours on 2 cores with bf16: 4.6 hours for 01 to 11, and 2.9 hours for 12. This table
# lists what was cut for that, in minutes before and after, and what the cut costs. The seconds in parentheses are those
# of one epoch on 2 cores.
#
#     03   31 ->  18   9 epochs instead of 12 (96 s); no trial of the stem that would not be used anyway
#     04   37 ->  22   25 epochs instead of 40 (26 s): about one point of accuracy; the claim is still reached
#     05  194 ->  86   one seed instead of two: two seeds showed nothing about attention either;
#                      6 epochs of each recipe instead of 5 and 7 (90 and 72 s);
#                      8 epochs of the final model instead of 16 (190 s): it loses a few points;
#                      8 of the minutes are for balanced sampling, which is new
#     06  117 ->  55   only the three versions that its pair and its main comparison need: two of five claims are left
#                      to profile full; 9 epochs instead of 11 (110 s): 11 of 300 epochs settled no claim
#     10   76 ->  40   one seed instead of two, 3 epochs with all labels instead of 4
#     11   95 ->  38   one seed instead of two, 3 epochs of the ablation instead of 4
#
# Profile full is sized for about one hour on one H100, half of it for 12. Its minutes are estimates: images per epoch
# times epochs times seeds, divided by the images per second that CUDA graphs reached there over all seeds together
# (measured: ResNet18 at 12x12 110,000, at 24x24 48,000, EfficientNet-B0 with batches of 256 46,000; estimated from
# these: baseline CNN 200,000, ResNet50 40,000, VGG16 25,000), plus two seconds for each graph capture. Every comparison
# of methods has six seeds, because with fewer seeds no p-value of the test can fall below 0.05.
SIX_SEEDS = [0, 1, 2, 3, 4, 5]


@dataclass(frozen=True)
class Stage:
    """One notebook of the run. Paths of files are relative to the notebook's folder `out`."""

    name: str  # the notebook's file name without ".ipynb"
    gives: tuple[str, ...]  # files that the notebook must have written when it ends
    minutes: Mapping[str, float]  # profile -> expected time; after the first run, the measured time replaces it
    # Earlier stage -> the files of it that this notebook reads; "*" matches any text. Published files that came with
    # the project, such as the logits in reports/, are enough: the earlier stage need not run again.
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # profile -> values of its parameters
    timeout_minutes: float | None = None  # time limit of one cell; None: ten times `minutes`, at least ten minutes
    resumes: bool = False  # whether it trains with checkpoints, so that a later run continues where it stopped


STAGES = (
    Stage(
        name="01_exploration",
        gives=("tables/01_class_counts.csv", "tables/01_duplicates.csv", "tables/01_near_duplicates.csv"),
        minutes={"sample": 0.5, "cpu": 1, "full": 1},
    ),
    Stage(
        name="02_landmark_labelling",
        gives=(
            "checkpoints/landmarks.npz",
            "tables/02_detection.csv",
            "tables/02_noise_floor.csv",
            "tables/02_mean_positions.csv",
        ),
        minutes={"sample": 1, "cpu": 6, "full": 4},
        params={"sample": {"experiment_n": 100}, "full": {"experiment_n": 2000}},
    ),
    Stage(
        name="03_landmark_model",
        resumes=True,
        gives=(
            "tables/03_landmark_error.csv",
            "tables/03_results.csv",
            "figures/03_network.png",
            "checkpoints/landmark_resnet18.pt",
        ),
        minutes={"sample": 2, "cpu": 18, "full": 3.5},
        needs={"02_landmark_labelling": ("checkpoints/landmarks.npz", "tables/02_noise_floor.csv")},
        params={
            "sample": {"max_gmacs": 0.1, "trial_images": 200, "trial_epochs": 2, "epochs": 8, "batch_size": 32},
            "full": {
                "stems": ["imagenet", "middle", "stride2"],
                "trial_images": 8000,
                "trial_epochs": 8,
                "epochs": 30,
                "batch_size": 128,
                "seeds": SIX_SEEDS,
            },
        },
    ),
    Stage(
        name="04_baseline_cnn",
        resumes=True,
        gives=(
            "tables/04_results.csv",
            "tables/04_recall.csv",
            "figures/04_network.png",
            "predictions/04_baseline_cnn.npz",
            "predictions/04_baseline_cnn_no_augmentation.npz",
        ),
        minutes={"sample": 1, "cpu": 22, "full": 2},
        params={
            "sample": {"epochs": 8, "batch_size": 32},
            "full": {"epochs": 60, "seeds": SIX_SEEDS},
        },
    ),
    Stage(
        name="05_attention_resnet",
        resumes=True,
        gives=(
            "tables/05_comparison.csv",
            "tables/05_results.csv",
            "figures/05_network.png",
            "predictions/05_resnet18.npz",
            "predictions/05_attention_resnet18.npz",
            "predictions/05_resnet18_original.npz",
            "predictions/05_attention_resnet18_original.npz",
            "predictions/05_best_resnet18.npz",
            "checkpoints/best_resnet18.pt",
            "checkpoints/attention_resnet18.pt",
        ),
        minutes={"sample": 3, "cpu": 86, "full": 6},
        needs={"03_landmark_model": ("checkpoints/landmark_resnet18.pt", "tables/03_results.csv")},
        params={
            "sample": {
                "seeds": [0, 1],
                "epochs_original": 2,
                "epochs": 2,
                "final_epochs": 3,
                "batch_size": 32,
            },
            "full": {
                "seeds": SIX_SEEDS,
                "epochs_original": 15,
                "epochs": 25,
                "final_epochs": 40,
                "stems": ["imagenet", "middle", "stride2"],
                "with_control": True,
            },
        },
        timeout_minutes=240,
    ),
    Stage(
        name="06_efficientnet_ablation",
        resumes=True,
        gives=(
            "tables/06_ablation.csv",
            "figures/06_network.png",
            "predictions/06_efficientnet_none.npz",
            "predictions/06_efficientnet_crp.npz",
            "predictions/06_efficientnet_mixup_cutmix.npz",
        ),
        minutes={"sample": 2, "cpu": 55, "full": 9},
        params={
            "sample": {
                "versions": ["none", "crp", "crp_light", "crp_cutout", "mixup_cutmix"],
                "trial_images": 128,
                "trial_epochs": 2,
                "epochs": 3,
                "batch_size": 32,
                "seeds": [0],
            },
            "cpu": {
                "versions": ["none", "crp", "mixup_cutmix"],
                "trial_lr": 0.001,
                "epochs": 9,
                "max_lr": 0.001,
                "seeds": [0],
            },
            # Five questions at once: after Holm's correction six seeds could not show any difference, eight can.
            "full": {"epochs": 18, "batch_size": 256, "trial_epochs": 10, "seeds": list(range(8))},
        },
    ),
    Stage(
        name="07_ensemble_gflops",
        gives=("tables/07_ensemble.csv", "tables/07_efficiency.csv", "tables/07_weights.csv"),
        minutes={"sample": 1, "cpu": 3, "full": 3},
        needs={
            "04_baseline_cnn": ("predictions/04_*.npz", "manifest.json"),
            "05_attention_resnet": ("predictions/05_*.npz", "manifest.json"),
            "06_efficientnet_ablation": ("predictions/06_*.npz", "manifest.json"),
        },
        params={"sample": {"repeats": 3}},
    ),
    Stage(
        name="08_gradcam",
        gives=("tables/08_region_share.csv", "tables/08_claim.csv", "tables/08_faithfulness.csv"),
        minutes={"sample": 1, "cpu": 6, "full": 4},
        needs={
            "02_landmark_labelling": ("checkpoints/landmarks.npz",),
            "04_baseline_cnn": ("checkpoints/baseline_cnn_seed0.pt",),
            "05_attention_resnet": ("checkpoints/best_resnet18.pt", "checkpoints/attention_resnet18.pt"),
            "06_efficientnet_ablation": ("checkpoints/efficientnet_crp_seed0.pt",),
        },
        params={
            "sample": {"n_faces": 40, "n_claim_faces": 20, "n_heads": 10},
            "full": {"n_faces": 1000, "n_claim_faces": 400},
        },
    ),
    Stage(
        name="10_transfer_learning",
        resumes=True,
        gives=(
            "tables/10_label_curve.csv",
            "tables/10_differences.csv",
            "tables/10_multi_task.csv",
            "tables/10_results.csv",
            "figures/10_network.png",
            "predictions/10_resnet18_scratch.npz",
            "predictions/10_resnet18_fine_tuned.npz",
        ),
        minutes={"sample": 3, "cpu": 40, "full": 6.5},
        needs={
            "02_landmark_labelling": ("checkpoints/landmarks.npz",),
            "03_landmark_model": ("checkpoints/landmark_resnet18.pt",),
        },
        params={
            "sample": {
                "epochs": 1,
                "seeds": [0],
                "pretrain_epochs": 2,
                "vgg16_pretrain_images": 200,
                "vgg16_pretrain_epochs": 1,
                "val_faces": 56,
                "batch_size": 32,
            },
            "full": {
                "vgg16_fractions": [0.01, 0.1, 1.0],
                "multi_task_fractions": [0.01, 0.1, 1.0],
                "seeds": SIX_SEEDS,
                "seeds_all": SIX_SEEDS,
                "epochs": 8,
                "vgg16_epochs": 6,
                "pretrain_epochs": 8,
                "vgg16_pretrain_images": 0,
                "vgg16_pretrain_epochs": 5,
                "batch_size": 128,
            },
        },
        timeout_minutes=240,
    ),
    Stage(
        name="11_local_global",
        resumes=True,
        gives=(
            "tables/11_ablation.csv",
            "tables/11_comparison.csv",
            "tables/11_results.csv",
            "figures/11_network.png",
            "predictions/11_best_local_global.npz",
            "checkpoints/best_local_global.pt",
        ),
        minutes={"sample": 3, "cpu": 38, "full": 5.5},
        needs={
            "02_landmark_labelling": ("checkpoints/landmarks.npz",),
            "03_landmark_model": ("checkpoints/landmark_resnet18.pt",),
            "05_attention_resnet": ("predictions/05_attention_resnet18.npz",),
        },
        params={
            "sample": {
                "train_images": 350,
                "epochs": 3,
                "final_epochs": 3,
                "val_faces": 56,
                "batch_size": 32,
            },
            "full": {
                "seeds": SIX_SEEDS,
                "train_images": 0,
                "epochs": 6,
                "final_epochs": 12,
                "batch_size": 128,
            },
        },
        timeout_minutes=240,
    ),
    Stage(
        name="12_best_model",
        resumes=True,
        gives=(
            "tables/12_results.csv",
            "tables/12_choice.csv",
            "figures/12_network.png",
            "predictions/12_ensemble.npz",
            "predictions/12_distilled.npz",
            "checkpoints/small_model.pt",
        ),
        minutes={"sample": 3, "cpu": 170, "full": 35},
        params={
            "sample": {
                "seeds": [0],
                "epochs": 2,
                "member_epochs": {"small_wide": 1},
                "ablation_epochs": 1,
                "out_of_fold": True,
                "train_on_val": True,
                "batch_size": 32,
            },
            "full": {
                "seeds": SIX_SEEDS,
                "epochs": 100,
                "student_seeds": SIX_SEEDS,
                # Each at most two minutes on one H100.
                "member_epochs": {
                    "resnet_24": 80,
                    "resnet_24_wide": 60,
                    "resnet_48": 30,
                    "vgg16": 50,
                    "efficientnet": 40,
                },
                "member_seeds": [0, 1],
                "strong_augmentation": True,
                "ablation_epochs": 20,
                "ablation_seeds": list(range(8)),  # six questions at once, as in 06
                "out_of_fold": True,
                "train_on_val": True,
            },
        },
        timeout_minutes=300,
    ),
    Stage(
        name="09_live_demo",
        gives=("tables/09_latency.csv", "tables/09_batching.csv", "tables/09_crops.csv", "tables/09_recrop.csv"),
        minutes={"sample": 1, "cpu": 4, "full": 2},
        needs={
            "04_baseline_cnn": ("checkpoints/baseline_cnn_seed0.pt",),
            "05_attention_resnet": ("checkpoints/attention_resnet18.pt", "checkpoints/best_resnet18.pt"),
            "06_efficientnet_ablation": (
                "checkpoints/efficientnet_crp_seed0.pt",
                "checkpoints/efficientnet_mixup_cutmix_seed0.pt",
            ),
            "12_best_model": ("checkpoints/small_model.pt",),
        },
        params={
            "sample": {"crop_images": 70, "repeats": 10},
            "full": {"crop_images": 0},
        },
    ),
)
