"""Studies: several runs that answer one question, made by one command that resumes, told in one table and figure."""
