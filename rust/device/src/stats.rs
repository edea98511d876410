//! Counters of one queue: written by its worker a batch at a time, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the device was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Names and values, in order.
            pub fn items(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            /// Adds `other`'s counts.
            pub fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }
        }

        /// The counters of one queue number; they live as long as the device.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* }
            }

            pub(crate) fn add(&self, batch: &Stats) {
                $(if batch.$name != 0 { self.$name.fetch_add(batch.$name, Relaxed); })*
            }
        }
    };
}

counters! {
    /// Requests completed.
    requests,
    /// Bytes read from the backend.
    bytes_read,
    /// Bytes written to the backend.
    bytes_written,
    /// Requests completed with an error status or without room for a status.
    errors,
    /// Wake-ups by kicks; kicks that come together count once.
    kicks,
    /// Irqs sent.
    irqs,
    /// Publications for which the driver wanted no irq.
    irqs_suppressed,
    /// Publications.
    batches,
    /// IOTLB misses (of the device).
    iotlb_misses,
    /// Requests taken and not yet completed, now.
    in_flight,
}
