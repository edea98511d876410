//! SIGBUS: a region whose file shrank below it is replaced by anonymous pages and poisoned.
