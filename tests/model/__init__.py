"""What tests compare the file system with."""
