"""What people read: one HTML page, Markdown, tables for a terminal, and pictures, from records alone."""
