"""Studies: several runs that answer one question, made by one command that resumes, with one table and figure."""
