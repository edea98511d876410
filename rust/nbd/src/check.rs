//! Which requests are taken, and what the others are answered (NBD protocol document, "Request
//! types" and "Error values").

use crate::wire::{Error, Header, command, flag};

/// Bytes of the largest read or write.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Offsets and lengths are multiples of this: virtio-blk's sector.
const BLOCK: u64 = 512;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    Flush,
    Trim,
    /// Nothing: what comes fast is the device's to know.
    Cache,
    WriteZeroes {
        unmap: bool,
    },
    BlockStatus {
        one: bool,
    },
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Take(Command),
    Refuse(Error),
    /// The client has said good-bye.
    Disconnect,
}

/// The disk that requests are for, and what was negotiated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) can_discard: bool,
    pub(crate) structured: bool,
    pub(crate) base_allocation: bool,
}

/// Judges a request.
pub(crate) fn check(header: &Header, terms: &Terms) -> Verdict {
    // The document has FUA mean nothing where nothing is written, and forbids to refuse it.
    let flags = header.flags & !flag::FUA;
    let has = |flag| flags & flag != 0;
    let (command, allowed) = match header.command {
        command::DISC => return Verdict::Disconnect,
        command::READ => (Command::Read, if terms.structured { flag::DF } else { 0 }),
        command::WRITE => (Command::Write, 0),
        command::FLUSH => (Command::Flush, 0),
        command::TRIM => (Command::Trim, 0),
        command::CACHE => (Command::Cache, 0),
        command::WRITE_ZEROES => {
            let unmap = !has(flag::NO_HOLE);
            (
                Command::WriteZeroes { unmap },
                flag::NO_HOLE | flag::FAST_ZERO,
            )
        }
        command::BLOCK_STATUS if terms.base_allocation => {
            let one = has(flag::REQ_ONE);
            (Command::BlockStatus { one }, flag::REQ_ONE)
        }
        _ => return Verdict::Refuse(Error::Inval),
    };
    if flags & !allowed != 0 {
        return Verdict::Refuse(Error::Inval);
    }
    match refusal(command, header, terms) {
        Some(error) => Verdict::Refuse(error),
        // Deallocating is fast; whether anything else is, nobody says.
        None if has(flag::FAST_ZERO)
            && !(terms.can_discard && command == (Command::WriteZeroes { unmap: true })) =>
        {
            Verdict::Refuse(Error::NotSup)
        }
        None => Verdict::Take(command),
    }
}

/// Why a known command cannot be done here.
fn refusal(command: Command, header: &Header, terms: &Terms) -> Option<Error> {
    if command == Command::Flush {
        return (header.offset != 0 || header.length != 0).then_some(Error::Inval);
    }
    let writes = matches!(command, Command::Write | Command::WriteZeroes { .. });
    if terms.read_only && (writes || command == Command::Trim) {
        return Some(Error::Perm);
    }
    if command == Command::Trim && !terms.can_discard {
        return Some(Error::Inval);
    }
    let length = u64::from(header.length);
    if length == 0 || !length.is_multiple_of(BLOCK) || !header.offset.is_multiple_of(BLOCK) {
        return Some(Error::Inval);
    }
    let end = header.offset.checked_add(length);
    if end.is_none_or(|end| end > terms.size) {
        return Some(if writes { Error::NoSpc } else { Error::Inval });
    }
    let moves = matches!(command, Command::Read | Command::Write);
    (moves && header.length > MAX_PAYLOAD).then_some(match header.flags & flag::DF {
        0 => Error::Inval,
        _ => Error::Overflow,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        size: 1 << 30,
        read_only: false,
        can_discard: true,
        structured: true,
        base_allocation: true,
    };

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> Header {
        Header {
            flags,
            command,
            cookie: 0,
            offset,
            length,
        }
    }

    fn verdict(command: u16, flags: u16, offset: u64, length: u32) -> Verdict {
        check(&header(command, flags, offset, length), &TERMS)
    }

    #[test]
    fn commands_are_taken_with_their_own_flags() {
        let zeroes = |unmap| Verdict::Take(Command::WriteZeroes { unmap });
        let taken = [
            (command::READ, flag::DF, Verdict::Take(Command::Read)),
            (command::WRITE, flag::FUA, Verdict::Take(Command::Write)),
            (command::TRIM, flag::FUA, Verdict::Take(Command::Trim)),
            (command::CACHE, 0, Verdict::Take(Command::Cache)),
            (command::WRITE_ZEROES, flag::FUA, zeroes(true)),
            (command::WRITE_ZEROES, flag::NO_HOLE, zeroes(false)),
            (command::WRITE_ZEROES, flag::FAST_ZERO, zeroes(true)),
            (
                command::BLOCK_STATUS,
                flag::REQ_ONE,
                Verdict::Take(Command::BlockStatus { one: true }),
            ),
        ];
        for (command, flags, expected) in taken {
            assert_eq!(
                verdict(command, flags, 512, 1024),
                expected,
                "{command} {flags}"
            );
            // Without effect, where it has none, and never refused.
            assert_eq!(verdict(command, flags | flag::FUA, 512, 1024), expected);
        }
        assert_eq!(
            verdict(command::FLUSH, 0, 0, 0),
            Verdict::Take(Command::Flush)
        );
        assert_eq!(verdict(command::DISC, 0xffff, 3, 3), Verdict::Disconnect);
    }

    #[test]
    fn unknown_commands_and_flags_are_einval() {
        for command in [8, 9, 0xffff] {
            assert_eq!(verdict(command, 0, 0, 512), Verdict::Refuse(Error::Inval));
        }
        let flags = [
            (command::READ, flag::NO_HOLE),
            (command::READ, 1 << 5),
            (command::WRITE, flag::DF),
            (command::FLUSH, flag::REQ_ONE),
            (command::TRIM, flag::NO_HOLE),
            (command::WRITE_ZEROES, flag::REQ_ONE),
            (command::BLOCK_STATUS, flag::DF),
            (command::CACHE, 1 << 15),
        ];
        for (command, flags) in flags {
            assert_eq!(
                verdict(command, flags, 0, 512),
                Verdict::Refuse(Error::Inval),
                "{command} {flags}"
            );
        }
    }

    #[test]
    fn what_was_not_negotiated_is_einval() {
        let plain = Terms {
            structured: false,
            base_allocation: false,
            can_discard: false,
            ..TERMS
        };
        let requests = [
            header(command::READ, flag::DF, 0, 512),
            header(command::BLOCK_STATUS, 0, 0, 512),
            header(command::TRIM, 0, 0, 512),
        ];
        for request in requests {
            assert_eq!(check(&request, &plain), Verdict::Refuse(Error::Inval));
        }
    }

    #[test]
    fn past_the_end_is_enospc_for_writes_and_einval_else() {
        let ends = [
            (TERMS.size, 512),
            (TERMS.size - 512, 1024),
            (u64::MAX - 511, 512),
        ];
        for (offset, length) in ends {
            for command in [command::WRITE, command::WRITE_ZEROES] {
                let refused = Verdict::Refuse(Error::NoSpc);
                assert_eq!(verdict(command, 0, offset, length), refused);
            }
            for command in [
                command::READ,
                command::TRIM,
                command::CACHE,
                command::BLOCK_STATUS,
            ] {
                let refused = Verdict::Refuse(Error::Inval);
                assert_eq!(verdict(command, 0, offset, length), refused);
            }
        }
        assert_eq!(
            verdict(command::WRITE, 0, TERMS.size - 512, 512),
            Verdict::Take(Command::Write)
        );
    }

    #[test]
    fn no_whole_sectors_are_einval() {
        for command in [0, 1, 4, 5, 6, 7] {
            for (offset, length) in [(1, 512), (512, 511), (0, 0)] {
                assert_eq!(
                    verdict(command, 0, offset, length),
                    Verdict::Refuse(Error::Inval)
                );
            }
        }
        for (offset, length) in [(0, 512), (512, 0)] {
            assert_eq!(
                verdict(command::FLUSH, 0, offset, length),
                Verdict::Refuse(Error::Inval)
            );
        }
    }

    #[test]
    fn a_read_only_disk_takes_no_changes() {
        let terms = Terms {
            read_only: true,
            ..TERMS
        };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            // Even where they lie past the end.
            for offset in [0, TERMS.size] {
                let verdict = check(&header(command, 0, offset, 512), &terms);
                assert_eq!(verdict, Verdict::Refuse(Error::Perm));
            }
        }
    }

    #[test]
    fn more_than_the_largest_payload_is_refused() {
        let over = MAX_PAYLOAD + 512;
        assert_eq!(
            verdict(command::READ, 0, 0, over),
            Verdict::Refuse(Error::Inval)
        );
        assert_eq!(
            verdict(command::READ, flag::DF, 0, over),
            Verdict::Refuse(Error::Overflow)
        );
        assert_eq!(
            verdict(command::WRITE, 0, 0, over),
            Verdict::Refuse(Error::Inval)
        );
        assert_eq!(
            verdict(command::TRIM, 0, 0, over),
            Verdict::Take(Command::Trim)
        );
    }

    #[test]
    fn fast_zero_is_enotsup_where_nothing_says_that_it_is_fast() {
        let refused = Verdict::Refuse(Error::NotSup);
        let both = flag::FAST_ZERO | flag::NO_HOLE;
        assert_eq!(verdict(command::WRITE_ZEROES, both, 0, 512), refused);
        let terms = Terms {
            can_discard: false,
            ..TERMS
        };
        let header = header(command::WRITE_ZEROES, flag::FAST_ZERO, 0, 512);
        assert_eq!(check(&header, &terms), refused);
    }
}
