"""Publishing SAEs to the Hugging Face Hub."""

from sae_lens_bipolar.hub.publishing import PublishConfig, Published, publish

__all__ = ["PublishConfig", "Published", "publish"]
