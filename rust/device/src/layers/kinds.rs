//! Kinds of operations, for layers that treat them differently.

use crate::Extent;
use crate::backend::Op;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// [`Op::Read`].
    Read,
    /// [`Op::Write`].
    Write,
    /// [`Op::Flush`].
    Flush,
    /// [`Op::Discard`], one of its ranges.
    Discard,
    /// [`Op::WriteZeroes`], one of its ranges.
    WriteZeroes,
}

impl OpKind {
    /// All, in the order of their numbers (`as usize`).
    pub const ALL: [OpKind; 5] = [
        OpKind::Read,
        OpKind::Write,
        OpKind::Flush,
        OpKind::Discard,
        OpKind::WriteZeroes,
    ];

    /// The operation's kind.
    pub fn of(op: &Op) -> OpKind {
        match op {
            Op::Read { .. } => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Flush => OpKind::Flush,
            Op::Discard { .. } => OpKind::Discard,
            Op::WriteZeroes { .. } => OpKind::WriteZeroes,
        }
    }

    /// By its name in Python.
    pub fn parse(name: &str) -> Option<OpKind> {
        OpKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in Python.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Flush => "flush",
            OpKind::Discard => "discard",
            OpKind::WriteZeroes => "write_zeroes",
        }
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpKinds(u8);

impl OpKinds {
    /// Every kind.
    pub const ALL: OpKinds = OpKinds((1 << OpKind::ALL.len()) - 1);

    /// Whether `kind` is one of them.
    pub fn contains(self, kind: OpKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

impl FromIterator<OpKind> for OpKinds {
    fn from_iter<I: IntoIterator<Item = OpKind>>(kinds: I) -> OpKinds {
        OpKinds(kinds.into_iter().fold(0, |set, kind| set | 1 << kind as u8))
    }
}

/// Where an operation works; `None` for a flush.
pub(super) fn extent_of(op: &Op) -> Option<Extent> {
    match op {
        Op::Read { extent, .. }
        | Op::Write { extent, .. }
        | Op::Discard { extent }
        | Op::WriteZeroes { extent, .. } => Some(*extent),
        Op::Flush => None,
    }
}
