"""What a person sees on the terminal: progress while it works, tables when it is done; the one owner of rich."""
