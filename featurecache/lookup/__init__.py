"""What a cache holds: labelled rows, spaces, and the command that fills a gap."""
