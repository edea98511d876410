//! The whole data path: a driver's ring on one side, test backends on the other.
