"""The accuracy benchmark: every quantizer on the same model, data, steps and bits."""
