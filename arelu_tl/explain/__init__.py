"""What the exchanged sites do in a trained model, measured, recorded, tabulated and drawn."""
