"""Unified transformers with modality experts: VLMo, whose modalities share self-attention, and BEiT-3."""
