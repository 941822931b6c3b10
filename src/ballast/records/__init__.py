"""What runs leave on disk: one schema, written once and read by one reader."""
