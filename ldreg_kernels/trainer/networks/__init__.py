"""Networks: encoders, heads, the MAE decoder, the momentum copy."""
