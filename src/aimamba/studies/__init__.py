"""Studies: several runs that answer one question, with one table and one figure. One command runs and resumes them."""
