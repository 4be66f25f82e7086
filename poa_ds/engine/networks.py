"""The networks of a training method, as far as the engine must know them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from torch import nn

from poa_ds.model.backbone import ElasticBackbone

T = TypeVar("T")


class Networks(nn.Module):
    """What a method trains, as one module, so that one engine cuts it up under ZeRO.

    student: all that the optimizer moves; `student.backbone` is an ElasticBackbone. teacher: its
    parameters hold the moving averages of the student's parameters of the same names, which they
    start as; a student may have more. None: nothing is averaged, and the student is deployed.
    leaves: classes besides the backbone's that ZeRO-3 gathers as a whole.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        leaves: Sequence[type[nn.Module]] = (),
    ) -> None:
        super().__init__()
        self.student, self.teacher, self._leaves = student, teacher, tuple(leaves)
        if teacher is not None:
            start, names = student.state_dict(), teacher.state_dict()
            teacher.load_state_dict({name: start[name] for name in names})
            teacher.requires_grad_(False)

    def forward(self, work: Callable[["Networks"], T]) -> T:
        """work(self): every use of the parameters passes the hooks of this root module."""
        return work(self)

    @property
    def backbone(self) -> ElasticBackbone:
        return self.student.backbone

    @property
    def deployed(self) -> Literal["average", "student"]:
        """What is evaluated, kept and exported."""
        return "student" if self.teacher is None else "average"

    def trained(self) -> dict[str, nn.Parameter]:
        """All that the optimizer moves, by name. `backbone.` begins the names of the backbone."""
        return dict(self.student.named_parameters())

    def averaged(self) -> Mapping[str, tuple[nn.Parameter, nn.Parameter]]:
        """Name -> (parameter of the student, the teacher's one that is its moving average)."""
        trained = self.trained()
        teacher = self.teacher.named_parameters() if self.teacher is not None else ()
        return {name: (trained[name], average) for name, average in teacher}

    def leaves(self) -> list[type[nn.Module]]:
        """Classes of modules that ZeRO-3 gathers as a whole, once for all students."""
        return [*self.backbone.leaf_modules(), *self._leaves]
