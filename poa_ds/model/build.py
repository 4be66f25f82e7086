"""From options to an elastic backbone."""

from poa_ds.model import architectures
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.layers import scale_inputs
from poa_ds.model.options import Backbone
from poa_ds.model.space import ElasticSpace


def backbone(
    options: Backbone, image_size: int, space: ElasticSpace, *, channels: int
) -> ElasticBackbone:
    """The backbone of these sizes, newly initialised from torch's global generator.

    channels: of the images.
    """
    network = architectures.part(options.name, "network").NETWORK
    made = network.of(options, image_size, space, channels=channels)
    scale_inputs(made, options.input_scale)
    return made
