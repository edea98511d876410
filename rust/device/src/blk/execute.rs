//! A request under way: its operations at the engine, and how they ended.

use super::Finish;
use super::finish::Used;
use super::parse::{Request, What};
use super::wire::{ID_BYTES, Status};
use crate::backend::{Completion, Engine, Info, Kind, Op, Submitted, Token, check};
use crate::failures::Failure;
use crate::{Buffer, Extent};
use rustix::io::Errno;

/// A request whose operations have been handed to an engine.
pub(crate) struct Execution {
    finish: Finish,
    /// Operations at the engine.
    pending: u32,
    result: Result<(), Errno>,
    /// Bytes that a success has written before the status.
    data: u32,
    /// Where a detachable engine's data goes.
    into: Option<Buffer>,
    /// A flush still has to follow.
    write_through: bool,
    operation: Operation,
    /// Where; the first one of several, `None` of a flush.
    extent: Option<Extent>,
}

/// What a request is.
#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

/// What a finished request counts as; bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Read(u64),
    Write(u64),
    Flush,
    /// A discard or write zeroes.
    Discard,
    Other,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Completions will follow.
    Pending,
    /// It is over: call [`Execution::finish`].
    Over,
}

impl Execution {
    /// Hands a request's operations to `engine` under `token`. `serial` is what GET_ID answers.
    pub(crate) fn start(
        request: Request,
        serial: &[u8; ID_BYTES],
        info: &Info,
        engine: &mut dyn Engine,
        token: Token,
    ) -> (Execution, Progress) {
        let mut this = Execution {
            finish: request.finish,
            pending: 0,
            result: Ok(()),
            data: 0,
            into: None,
            write_through: false,
            operation: Operation::Flush,
            extent: None,
        };
        match request.what {
            What::Read { extent, buffer } => {
                (this.operation, this.extent) = (Operation::Read, Some(extent));
                this.data = buffer.len() as u32; // a chain holds at most 2^32 bytes, with status
                this.into = (info.kind == Kind::Detachable).then(|| buffer.share());
                this.submit(Op::Read { extent, buffer }, info, engine, token);
            }
            What::Write {
                extent,
                buffer,
                write_through,
            } => {
                (this.operation, this.extent) = (Operation::Write, Some(extent));
                this.write_through = write_through;
                this.submit(Op::Write { extent, buffer }, info, engine, token);
            }
            What::Flush => this.submit(Op::Flush, info, engine, token),
            What::GetId { buffer } => {
                this.operation = Operation::GetId;
                this.data = ID_BYTES as u32;
                buffer.write(serial);
            }
            What::Discard(ranges) => {
                this.operation = Operation::Discard;
                this.extent = ranges.first().map(|(extent, _)| *extent);
                for (extent, _) in ranges {
                    this.submit(Op::Discard { extent }, info, engine, token);
                }
            }
            What::WriteZeroes {
                ranges,
                write_through,
            } => {
                this.operation = Operation::WriteZeroes;
                this.extent = ranges.first().map(|(extent, _)| *extent);
                this.write_through = write_through;
                for (extent, may_unmap) in ranges {
                    let op = Op::WriteZeroes { extent, may_unmap };
                    this.submit(op, info, engine, token);
                }
            }
        }
        let progress = this.progress(info, engine, token);
        (this, progress)
    }

    /// Takes the completion of one operation.
    pub(crate) fn complete(
        &mut self,
        completion: Completion,
        info: &Info,
        engine: &mut dyn Engine,
    ) -> Progress {
        self.pending = self.pending.saturating_sub(1);
        if let (Ok(()), Some(data), Some(into)) = (completion.result, &completion.data, &self.into)
        {
            into.write(data);
        }
        self.note(completion.result);
        self.progress(info, engine, completion.token)
    }

    /// An operation of a request that was given up has ended; whether it was the last.
    pub(crate) fn abandon_one(&mut self) -> bool {
        self.pending = self.pending.saturating_sub(1);
        self.pending == 0
    }

    /// Ends the request towards the driver.
    pub(crate) fn finish(self) -> (Used, Result<Traffic, Failure>) {
        let (operation, extent) = (self.operation, self.extent);
        match self.result {
            Ok(()) => {
                let bytes = extent.map_or(0, |extent| extent.len().0);
                let used = self.finish.end(Status::Ok, self.data);
                (used, Ok(operation.traffic(bytes)))
            }
            Err(errno) => {
                let operation = operation.name();
                let failure = Failure {
                    errno,
                    operation,
                    extent,
                };
                (self.finish.end(status_of(errno), 0), Err(failure))
            }
        }
    }

    fn submit(&mut self, op: Op, info: &Info, engine: &mut dyn Engine, token: Token) {
        if let Err(errno) = check(info, &op) {
            return self.note(Err(errno));
        }
        match engine.submit(token, op) {
            Submitted::Done(result) => self.note(result),
            Submitted::Pending => self.pending += 1,
        }
    }

    /// The first error stays.
    fn note(&mut self, result: Result<(), Errno>) {
        self.result = self.result.and(result);
    }

    fn progress(&mut self, info: &Info, engine: &mut dyn Engine, token: Token) -> Progress {
        let done = self.pending == 0 && self.result.is_ok();
        if done && std::mem::take(&mut self.write_through) {
            self.submit(Op::Flush, info, engine, token);
        }
        if self.pending > 0 {
            Progress::Pending
        } else {
            Progress::Over
        }
    }
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::GetId => "get id",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write zeroes",
        }
    }

    fn traffic(self, bytes: u64) -> Traffic {
        match self {
            Operation::Read => Traffic::Read(bytes),
            Operation::Write => Traffic::Write(bytes),
            Operation::Flush => Traffic::Flush,
            Operation::Discard | Operation::WriteZeroes => Traffic::Discard,
            Operation::GetId => Traffic::Other,
        }
    }
}

/// The one map from errno to status byte.
fn status_of(errno: Errno) -> Status {
    match errno {
        Errno::OPNOTSUPP | Errno::NOSYS => Status::Unsupp,
        _ => Status::IoErr,
    }
}
