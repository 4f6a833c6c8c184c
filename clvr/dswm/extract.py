"""The merged increment as a LoRA of a given rank."""
