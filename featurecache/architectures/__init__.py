"""Networks of papers 001, 003 and 004, with the interface of timm's. Knows no other room."""
