"""What a person sees: the console, tables, figures and the HTML report."""
