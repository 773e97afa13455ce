"""Every setting of every command, as frozen dataclasses: one schema for the command line, YAML, sweeps and tracking.

Nothing heavy is imported here, so that `ptmrec COMMAND --help` stays instant. A value that can be checked alone is checked
in `__post_init__`; what depends on the data or the encoder (a depth, a width) is checked where those are known.
"""

from ptmrec_dist.config.common import (
    EncoderConfig,
    FindsEncoder,
    Modalities,
    RayConfig,
    ReadsRun,
    TrackingConfig,
    encoder_label,
)
from ptmrec_dist.config.contrastive import ContrastiveConfig
from ptmrec_dist.config.data import (
    MAX_ASPECT_RATIO,
    CatalogueColumnsConfig,
    ColumnsConfig,
    FeaturesConfig,
    ImportConfig,
    PackConfig,
    ReadsTables,
)
from ptmrec_dist.config.doctor import DoctorConfig
from ptmrec_dist.config.download import DownloadColumnsConfig, DownloadConfig
from ptmrec_dist.config.experiment import PARADIGMS_OF_THE_PAPER, TRANSFER, ExperimentConfig, Paradigm
from ptmrec_dist.config.export import ExportConfig
from ptmrec_dist.config.merge import MergeConfig
from ptmrec_dist.config.parsing import (
    build,
    chooses_recommender,
    from_plain,
    merged,
    nested,
    plain_settings,
    settings_parser,
)
from ptmrec_dist.config.recommenders import RecommenderConfig, recommender_config
from ptmrec_dist.config.refit import RefitConfig
from ptmrec_dist.config.stage1 import ChoosesRecommender, Stage1Config, Stage1ZeroConfig
from ptmrec_dist.config.sweep import AshaConfig, SweepConfig
from ptmrec_dist.config.tuned import (
    EncoderOptimConfig,
    JointConfig,
    Keep,
    OptimConfig,
    Schedule,
    Stage2Config,
    TrainsBoth,
    TunesEncoder,
    ZeroConfig,
)
from ptmrec_dist.config.tuning import (
    AdapterConfig,
    FullConfig,
    LastNConfig,
    LoraConfig,
    MethodConfig,
    PromptConfig,
    TowersConfig,
    TuningConfig,
    groups,
    method_config,
    method_entry,
    require_used,
    used_settings,
)
from ptmrec_dist.config.use import (
    AddItemsConfig,
    DeleteConfig,
    DemoConfig,
    EvaluateConfig,
    GateConfig,
    ModelsConfig,
    PromoteConfig,
    RecommendConfig,
    RegisterConfig,
    ReportConfig,
    RollbackConfig,
    ServeConfig,
)
from ptmrec_dist.config.yaml_values import as_declared

__all__ = [
    "MAX_ASPECT_RATIO",
    "PARADIGMS_OF_THE_PAPER",
    "TRANSFER",
    "AdapterConfig",
    "AddItemsConfig",
    "AshaConfig",
    "CatalogueColumnsConfig",
    "ChoosesRecommender",
    "ColumnsConfig",
    "ContrastiveConfig",
    "DeleteConfig",
    "DemoConfig",
    "DoctorConfig",
    "DownloadColumnsConfig",
    "DownloadConfig",
    "EncoderConfig",
    "EncoderOptimConfig",
    "EvaluateConfig",
    "ExperimentConfig",
    "ExportConfig",
    "FeaturesConfig",
    "FindsEncoder",
    "FullConfig",
    "GateConfig",
    "ImportConfig",
    "JointConfig",
    "Keep",
    "LastNConfig",
    "LoraConfig",
    "MergeConfig",
    "MethodConfig",
    "Modalities",
    "ModelsConfig",
    "OptimConfig",
    "PackConfig",
    "Paradigm",
    "PromoteConfig",
    "PromptConfig",
    "RayConfig",
    "ReadsRun",
    "ReadsTables",
    "RecommendConfig",
    "RecommenderConfig",
    "RefitConfig",
    "RegisterConfig",
    "ReportConfig",
    "RollbackConfig",
    "Schedule",
    "ServeConfig",
    "Stage1Config",
    "Stage1ZeroConfig",
    "Stage2Config",
    "SweepConfig",
    "TowersConfig",
    "TrackingConfig",
    "TrainsBoth",
    "TunesEncoder",
    "TuningConfig",
    "ZeroConfig",
    "as_declared",
    "build",
    "chooses_recommender",
    "encoder_label",
    "from_plain",
    "groups",
    "merged",
    "method_config",
    "method_entry",
    "nested",
    "plain_settings",
    "recommender_config",
    "require_used",
    "settings_parser",
    "used_settings",
]
