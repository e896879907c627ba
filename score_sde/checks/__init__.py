"""What a user may give: one error, one lookup of names, one validation by types.

Whatever is wrong with what was given is a `UserError`, a sentence with the field, the value and
what is allowed. Anything else that is raised is a mistake of ours. In ten seconds:

    @checked                                 # a public function: types and ranges by annotations
    def sample(sde: SDE, steps: Count | None = None, grid: str | Tensor | None = None): ...

    @validated("training")                   # settings: errors name training.lr
    @dataclass(frozen=True)
    class TrainingSettings:
        lr: Positive = 2e-4
        batch_size: Count = 128
        betas: tuple[Fraction, Fraction] = (0.9, 0.999)
        precision: Literal["fp32", "bf16"] = "fp32"

        def __post_init__(self):             # what only mathematics decides stays here
            require(self.t_min < self.t_max, f"training.t_min ({self.t_min}) must be below ...")

    METHODS = {"ddim": DDIM}
    make = lookup(METHODS, name, "sampler", kind=Predictor)      # short name or dotted path

Types are strict: "5" is not 5, True is not 1, 1.5 is no whole number; NaN and infinity are refused
unless the type is `Extended`. NumPy's scalars are numbers, a list will do for a tuple. A class in
an annotation (Tensor, SDE, nn.Module) means an instance of it; unannotated arguments pass.

A dotted path is the user's own word, unless it comes from a file of somebody else's: what is built
from such a file is built ``with trusting(False)``, where a name means a built-in, or a class of
this package of the right kind, and nothing else is imported.
"""

from score_sde.checks.arrays import check_member, check_members, read_arrays, read_member
from score_sde.checks.errors import (
    UserError,
    did_you_mean,
    require,
    sentence_of,
    shown,
    unknown,
)
from score_sde.checks.files import (
    LOOSE,
    cache_dir,
    from_json,
    json_lines,
    objects,
    read_json,
    reading,
    try_json,
)
from score_sde.checks.memory import check_size, machine_memory, memory_for
from score_sde.checks.names import check_names, library, lookup, named, trusting, trusts_files
from score_sde.checks.pickles import check_archive, check_pickle, check_tensors, load_pickled
from score_sde.checks.text import as_it_looks, literal, number
from score_sde.checks.types import (
    BatchShape,
    Count,
    Depth,
    Device,
    Extended,
    Few,
    Fraction,
    Index,
    ItemShape,
    Momentum,
    NonNegative,
    Options,
    Positive,
    Row,
    Seed,
    Several,
    Share,
    Size,
    Sizes,
    check_alone,
    check_count,
    check_finite,
    check_varies,
    real_tensor,
    whole_seeds,
)
from score_sde.checks.validation import checked, construct, sentence, validated

__all__ = [
    "BatchShape",
    "Device",
    "Count",
    "Depth",
    "Extended",
    "Few",
    "Fraction",
    "Index",
    "ItemShape",
    "LOOSE",
    "Momentum",
    "NonNegative",
    "Options",
    "Positive",
    "Row",
    "Seed",
    "Several",
    "Share",
    "Size",
    "Sizes",
    "UserError",
    "as_it_looks",
    "cache_dir",
    "check_alone",
    "check_archive",
    "check_count",
    "check_finite",
    "check_member",
    "check_members",
    "check_names",
    "check_pickle",
    "check_size",
    "check_tensors",
    "check_varies",
    "checked",
    "construct",
    "did_you_mean",
    "from_json",
    "json_lines",
    "library",
    "literal",
    "load_pickled",
    "lookup",
    "machine_memory",
    "memory_for",
    "named",
    "number",
    "objects",
    "read_arrays",
    "read_json",
    "read_member",
    "reading",
    "real_tensor",
    "require",
    "sentence",
    "sentence_of",
    "shown",
    "trusting",
    "trusts_files",
    "try_json",
    "unknown",
    "validated",
    "whole_seeds",
]
