//! Filters: programs of classic BPF, checked once and then run on one packet at a time.
//!
//! Owns the instruction set, what a program must be like to be accepted, and what it answers. Refuses to know the language
//! that programs are written in: libpcap, on the client's side, makes them of it.
//!
//! A program comes from outside, so it is translated into [`Step`]s that cannot be wrong: known operations, memory cells that
//! exist, jumps that lead forward and end inside, a divisor that is not zero, a return at the end. What is left to look at
//! while it runs is whether a load lies in the packet, and a divisor that was computed; either ends it with "no", as in the
//! kernel. Jumps only lead forward, so a program takes at most as many steps as it has.
//!
//! Source: `bpf_check_classic` and `chk_code_allowed` (net/core/filter.c) for what is accepted, `bpf_filter` of libpcap
//! (bpf_filter.c) for what it means. Not accepted: loads from the kernel's ancillary area, which no packet of ours has.

use tidegate_api::capture::Instruction;

/// Most instructions of a program (`BPF_MAXINSNS`, include/uapi/linux/bpf_common.h).
pub const STEPS_MAX: usize = 4096;
/// Memory cells (`BPF_MEMWORDS`, include/uapi/linux/filter.h).
const CELLS: usize = 16;

/// Why a program is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More than [`STEPS_MAX`].
    #[error("the filter has {0} instructions; {STEPS_MAX} are the most")]
    TooLong(usize),
    /// An operation that there is not.
    #[error("instruction {0} of the filter is none of classic BPF")]
    Unknown(usize),
    /// A jump that leaves the program.
    #[error("instruction {0} of the filter jumps out of it")]
    Jump(usize),
    /// A memory cell that there is not.
    #[error("instruction {0} of the filter uses a memory cell that there is not")]
    Cell(usize),
    /// A division by zero, or a shift by more than a word has.
    #[error("instruction {0} of the filter divides by zero or shifts too far")]
    Arithmetic(usize),
    /// The last instruction is no return.
    #[error("the filter does not end with a return")]
    NoReturn,
}

/// How much a load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Word,
    Half,
    Byte,
}

/// The second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Constant(u32),
    X,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Or,
    And,
    Xor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

/// One instruction that is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A from the packet.
    Load(Size, u32),
    /// The same, X further.
    LoadFromX(Size, u32),
    SetA(u32),
    SetX(u32),
    /// The packet's length.
    LengthToA,
    LengthToX,
    /// A cell below [`CELLS`].
    CellToA(u8),
    CellToX(u8),
    AToCell(u8),
    XToCell(u8),
    /// X becomes four times the low half of a byte: the length of an IPv4 header.
    HeaderLength(u32),
    Compute(Operation, Operand),
    Negate,
    /// Skips so many, which are there.
    Jump(u32),
    /// Skips one number or the other.
    Branch(Test, Operand, u8, u8),
    AToX,
    XToA,
    Return(u32),
    ReturnA,
}

/// A program that can be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(Box<[Step]>);

impl Program {
    /// The program of these instructions; of none, one that every packet passes.
    ///
    /// # Errors
    /// What is wrong with the first instruction that is.
    pub fn new(instructions: &[Instruction]) -> Result<Program, Fault> {
        if instructions.len() > STEPS_MAX {
            return Err(Fault::TooLong(instructions.len()));
        }
        let step = |(at, one): (usize, &Instruction)| step(at, instructions.len() - at - 1, one);
        let steps: Box<[Step]> = instructions.iter().enumerate().map(step).collect::<Result<_, _>>()?;
        match steps.last() {
            None | Some(Step::Return(_) | Step::ReturnA) => Ok(Program(steps)),
            Some(_) => Err(Fault::NoReturn),
        }
    }

    /// Whether every packet passes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `packet` passes.
    pub fn passes(&self, packet: &[u8]) -> bool {
        self.is_empty() || self.run(packet) != 0
    }

    /// What the program returns for `packet`: 0 is "no".
    pub fn run(&self, packet: &[u8]) -> u32 {
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let (mut a, mut x, mut cells, mut at) = (0u32, 0u32, [0u32; CELLS], 0usize);
        while let Some(step) = self.0.get(at) {
            at += 1;
            match *step {
                Step::Load(size, offset) => match load(packet, size, offset.into()) {
                    Some(value) => a = value,
                    None => return 0,
                },
                Step::LoadFromX(size, offset) => match load(packet, size, u64::from(x) + u64::from(offset)) {
                    Some(value) => a = value,
                    None => return 0,
                },
                Step::HeaderLength(offset) => match load(packet, Size::Byte, offset.into()) {
                    Some(value) => x = (value & 0xf) << 2,
                    None => return 0,
                },
                Step::SetA(value) => a = value,
                Step::SetX(value) => x = value,
                Step::LengthToA => a = length,
                Step::LengthToX => x = length,
                Step::CellToA(cell) => a = cells[usize::from(cell) % CELLS],
                Step::CellToX(cell) => x = cells[usize::from(cell) % CELLS],
                Step::AToCell(cell) => cells[usize::from(cell) % CELLS] = a,
                Step::XToCell(cell) => cells[usize::from(cell) % CELLS] = x,
                Step::Compute(operation, operand) => match compute(operation, a, value(operand, x)) {
                    Some(value) => a = value,
                    None => return 0,
                },
                Step::Negate => a = a.wrapping_neg(),
                Step::Jump(skip) => at += skip as usize,
                Step::Branch(test, operand, yes, no) => {
                    let skip = if holds(test, a, value(operand, x)) { yes } else { no };
                    at += usize::from(skip);
                }
                Step::AToX => x = a,
                Step::XToA => a = x,
                Step::Return(value) => return value,
                Step::ReturnA => return a,
            }
        }
        0
    }
}

fn value(operand: Operand, x: u32) -> u32 {
    match operand {
        Operand::Constant(k) => k,
        Operand::X => x,
    }
}

/// Network order, as everything in a packet.
fn load(packet: &[u8], size: Size, offset: u64) -> Option<u32> {
    let rest = packet.get(usize::try_from(offset).ok()?..)?;
    match size {
        Size::Word => rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
        Size::Half => rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes).into()),
        Size::Byte => rest.first().map(|byte| u32::from(*byte)),
    }
}

/// `None`: a division by zero.
fn compute(operation: Operation, a: u32, b: u32) -> Option<u32> {
    Some(match operation {
        Operation::Add => a.wrapping_add(b),
        Operation::Subtract => a.wrapping_sub(b),
        Operation::Multiply => a.wrapping_mul(b),
        Operation::Divide => a.checked_div(b)?,
        Operation::Modulo => a.checked_rem(b)?,
        Operation::Or => a | b,
        Operation::And => a & b,
        Operation::Xor => a ^ b,
        Operation::ShiftLeft => a.checked_shl(b).unwrap_or(0),
        Operation::ShiftRight => a.checked_shr(b).unwrap_or(0),
    })
}

fn holds(test: Test, a: u32, b: u32) -> bool {
    match test {
        Test::Equal => a == b,
        Test::Greater => a > b,
        Test::GreaterOrEqual => a >= b,
        Test::AnyBit => a & b != 0,
    }
}

/// The step of the instruction at `at`, after which `left` follow. Codes as in include/uapi/linux/bpf_common.h: class in the
/// low three bits, then source or size, then operation or mode.
fn step(at: usize, left: usize, one: &Instruction) -> Result<Step, Fault> {
    let k = one.k;
    let cell = || u8::try_from(k).ok().filter(|cell| usize::from(*cell) < CELLS).ok_or(Fault::Cell(at));
    let operand = if one.code & 0x08 == 0 { Operand::Constant(k) } else { Operand::X };
    Ok(match one.code {
        0x20 => Step::Load(Size::Word, k),
        0x28 => Step::Load(Size::Half, k),
        0x30 => Step::Load(Size::Byte, k),
        0x40 => Step::LoadFromX(Size::Word, k),
        0x48 => Step::LoadFromX(Size::Half, k),
        0x50 => Step::LoadFromX(Size::Byte, k),
        0x00 => Step::SetA(k),
        0x01 => Step::SetX(k),
        0x80 => Step::LengthToA,
        0x81 => Step::LengthToX,
        0x60 => Step::CellToA(cell()?),
        0x61 => Step::CellToX(cell()?),
        0x02 => Step::AToCell(cell()?),
        0x03 => Step::XToCell(cell()?),
        0xb1 => Step::HeaderLength(k),
        0x84 => Step::Negate,
        0x07 => Step::AToX,
        0x87 => Step::XToA,
        0x06 => Step::Return(k),
        0x16 => Step::ReturnA,
        0x05 if usize::try_from(k).is_ok_and(|skip| skip < left) => Step::Jump(k),
        0x05 => return Err(Fault::Jump(at)),
        code if code & 7 == 4 => Step::Compute(operation(code).ok_or(Fault::Unknown(at))?, sane(at, code, operand)?),
        code if code & 7 == 5 => {
            let test = test(code).ok_or(Fault::Unknown(at))?;
            if [one.jump_true, one.jump_false].iter().any(|skip| usize::from(*skip) >= left) {
                return Err(Fault::Jump(at));
            }
            Step::Branch(test, operand, one.jump_true, one.jump_false)
        }
        _ => return Err(Fault::Unknown(at)),
    })
}

fn operation(code: u16) -> Option<Operation> {
    Some(match code & !0x08 {
        0x04 => Operation::Add,
        0x14 => Operation::Subtract,
        0x24 => Operation::Multiply,
        0x34 => Operation::Divide,
        0x44 => Operation::Or,
        0x54 => Operation::And,
        0x64 => Operation::ShiftLeft,
        0x74 => Operation::ShiftRight,
        0x94 => Operation::Modulo,
        0xa4 => Operation::Xor,
        _ => return None,
    })
}

fn test(code: u16) -> Option<Test> {
    Some(match code & !0x08 {
        0x15 => Test::Equal,
        0x25 => Test::Greater,
        0x35 => Test::GreaterOrEqual,
        0x45 => Test::AnyBit,
        _ => return None,
    })
}

/// A constant that can be divided or shifted by.
fn sane(at: usize, code: u16, operand: Operand) -> Result<Operand, Fault> {
    match (operation(code), operand) {
        (Some(Operation::Divide | Operation::Modulo), Operand::Constant(0)) => Err(Fault::Arithmetic(at)),
        (Some(Operation::ShiftLeft | Operation::ShiftRight), Operand::Constant(32..)) => Err(Fault::Arithmetic(at)),
        _ => Ok(operand),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(code: u16, k: u32) -> Instruction {
        Instruction { code, jump_true: 0, jump_false: 0, k }
    }

    fn branch(code: u16, yes: u8, no: u8, k: u32) -> Instruction {
        Instruction { code, jump_true: yes, jump_false: no, k }
    }

    const ACCEPT: u32 = 262_144;

    #[test]
    fn ip_is_told_from_the_rest() {
        let ip = [one(0x28, 12), branch(0x15, 0, 1, 0x0800), one(0x06, ACCEPT), one(0x06, 0)];
        let program = Program::new(&ip).unwrap();
        let mut frame = [0u8; 14];
        assert!(!program.passes(&frame));
        frame[12] = 8;
        assert_eq!(program.run(&frame), ACCEPT);
        assert!(!program.passes(&frame[..13]), "a load beyond the packet is a no");
        assert!(Program::new(&[]).unwrap().passes(&[]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let refused = |program: &[Instruction]| Program::new(program).unwrap_err();
        let end = one(0x06, 1);
        assert_eq!(refused(&vec![end; STEPS_MAX + 1]), Fault::TooLong(STEPS_MAX + 1));
        assert!(Program::new(&vec![end; STEPS_MAX]).is_ok());
        assert_eq!(refused(&[one(0x28, 0)]), Fault::NoReturn);
        assert_eq!(refused(&[end, one(0xffff, 0), end]), Fault::Unknown(1));
        assert_eq!(refused(&[one(0x60, 16), end]), Fault::Cell(0));
        assert_eq!(refused(&[one(0x02, u32::MAX), end]), Fault::Cell(0));
        assert_eq!(refused(&[one(0x05, 1), end]), Fault::Jump(0));
        assert_eq!(refused(&[one(0x05, u32::MAX), end]), Fault::Jump(0));
        assert_eq!(refused(&[branch(0x15, 0, 1, 0), end]), Fault::Jump(0));
        assert_eq!(refused(&[branch(0x15, 255, 0, 0), end]), Fault::Jump(0));
        for code in [0x34, 0x94] {
            assert_eq!(refused(&[one(code, 0), end]), Fault::Arithmetic(0));
            // By X, which is zero here: no.
            assert_eq!(Program::new(&[one(code | 8, 0), end]).unwrap().run(&[]), 0);
        }
        assert_eq!(refused(&[one(0x64, 32), end]), Fault::Arithmetic(0));
    }

    #[test]
    fn offsets_do_not_wrap() {
        let far = [one(0x01, u32::MAX), one(0x40, u32::MAX), one(0x06, 1)];
        assert_eq!(Program::new(&far).unwrap().run(&[1; 64]), 0);
        let near = [one(0x01, 2), one(0x50, 1), one(0x16, 0)];
        assert_eq!(Program::new(&near).unwrap().run(&[1, 2, 3, 4]), 4);
    }
}
