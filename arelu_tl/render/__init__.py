"""Everything a user sees: the console, tables, figures and the HTML report."""
