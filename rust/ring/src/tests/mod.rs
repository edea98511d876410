//! Tests of both sides together and of the device side against hostile rings.

mod loopback;
