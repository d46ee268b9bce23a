//! Entries of any address space, for those who come from a page.
