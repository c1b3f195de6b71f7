"""From archives on disk, or from nothing (PhantomCT), to study rows."""
