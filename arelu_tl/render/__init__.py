"""Layer 5: what a person sees: tables, progress, figures. Whatever came from outside is escaped here."""
