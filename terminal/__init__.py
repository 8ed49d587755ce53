"""What people type and read: command lines without lost words, a screen that cannot stop a run."""
