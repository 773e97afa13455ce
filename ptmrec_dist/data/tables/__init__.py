"""Tables from files of any format: every column as text, or a one-line error."""
