//! A case as one line of text, and as numbers that can be shrunk.
//!
//! ```text
//! conv3d x=1,8,1,1,6 o=4 k=1,1,12 pad=0,0,0,0,6,6 replicate=1 pass=forward plan=gemm_256x4x16
//! ```
//!
//! The op, then every field that differs from its simplest value, then the plan, if the case names one. A
//! field is a list of numbers or a word.

use crate::{causal_conv1d, conv3d, decoding, rope};
use std::fmt;

/// The op of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// conv3d: forward, dx, dw, db.
    Conv3d,
    /// Causal conv1d: forward, final state, backward, the sequence in two pieces.
    CausalConv1d,
    /// Decoding steps of causal conv1d.
    Update,
    /// Sequence ids and last states of packed sequences.
    Packed,
    /// RoPE of every kind, both directions.
    Rope,
}

/// One property of a case.
#[derive(Debug)]
pub struct Field {
    /// Its name in a line.
    pub name: &'static str,
    /// The words for 0, 1, ..; empty for numbers.
    pub words: &'static [&'static str],
    /// The simplest value: the target of shrinking, and the default in a line.
    pub simplest: &'static [i64],
}

impl Field {
    /// A field of numbers.
    pub const fn numbers(name: &'static str, simplest: &'static [i64]) -> Self {
        Self { name, words: &[], simplest }
    }

    /// A field with one of `words`, the first of which is the simplest.
    pub const fn words(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, words, simplest: &[0] }
    }
}

impl Op {
    /// Every op.
    pub const ALL: [Self; 5] = [Self::Conv3d, Self::CausalConv1d, Self::Update, Self::Packed, Self::Rope];

    /// The first word of its lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv3d => "conv3d",
            Self::CausalConv1d => "causal_conv1d",
            Self::Update => "update",
            Self::Packed => "packed",
            Self::Rope => "rope",
        }
    }

    /// The fields of its cases.
    pub fn fields(self) -> &'static [Field] {
        match self {
            Self::Conv3d => conv3d::FIELDS,
            Self::CausalConv1d => causal_conv1d::FIELDS,
            Self::Update => decoding::UPDATE_FIELDS,
            Self::Packed => decoding::PACKED_FIELDS,
            Self::Rope => rope::FIELDS,
        }
    }
}

/// A problem with everything that determines how it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The op.
    pub op: Op,
    /// The numbers of each field, in the order of [`Op::fields`].
    pub values: Vec<Vec<i64>>,
    /// A plan's name; `auto` for the automatic one; `pick` and a number for that and some others; empty for
    /// every plan.
    pub plan: String,
}

impl Case {
    /// The simplest case of an op.
    pub fn new(op: Op) -> Self {
        let values = op.fields().iter().map(|field| field.simplest.to_vec()).collect();
        Self { op, values, plan: String::new() }
    }

    fn index(&self, name: &str) -> usize {
        let index = self.op.fields().iter().position(|field| field.name == name);
        index.unwrap_or_else(|| panic!("{} has no field {name}", self.op.name()))
    }

    /// The numbers of a field.
    pub fn numbers(&self, name: &str) -> &[i64] {
        &self.values[self.index(name)]
    }

    /// The numbers of a field of `N` numbers, as extents.
    pub fn extents<const N: usize>(&self, name: &str) -> [usize; N] {
        let numbers = self.numbers(name);
        std::array::from_fn(|index| usize::try_from(numbers[index]).unwrap_or(0))
    }

    /// The number of a field of one.
    pub fn number(&self, name: &str) -> i64 {
        self.numbers(name)[0]
    }

    /// The number of a field of one, as an extent.
    pub fn extent(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).unwrap_or(0)
    }

    /// Whether a field of one number is set.
    pub fn is(&self, name: &str) -> bool {
        self.number(name) != 0
    }

    /// The word of a field.
    pub fn word(&self, name: &str) -> &'static str {
        let field = &self.op.fields()[self.index(name)];
        field.words[self.number(name) as usize % field.words.len()]
    }

    /// Sets the numbers of a field.
    pub fn set(&mut self, name: &str, numbers: &[i64]) {
        let index = self.index(name);
        assert_eq!(self.values[index].len(), numbers.len(), "{name}");
        self.values[index] = numbers.to_vec();
    }

    /// Sets a field to one of its words.
    pub fn set_word(&mut self, name: &str, word: &str) {
        let words = self.op.fields()[self.index(name)].words;
        let index = words.iter().position(|each| *each == word);
        self.set(name, &[index.unwrap_or_else(|| panic!("{name} is never {word}")) as i64]);
    }

    /// Reads a line.
    ///
    /// # Errors
    /// Which word of the line is not understood.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let name = words.next().ok_or("the line is empty")?;
        let op = Op::ALL.into_iter().find(|op| op.name() == name);
        let mut case = Self::new(op.ok_or_else(|| format!("there is no op `{name}`"))?);
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("`{word}` has no `=`"))?;
            if name == "plan" {
                case.plan = value.to_string();
                continue;
            }
            let index = case.op.fields().iter().position(|field| field.name == name);
            let index = index.ok_or_else(|| format!("{} has no field `{name}`", case.op.name()))?;
            let field = &case.op.fields()[index];
            let numbers: Option<Vec<i64>> = if field.words.is_empty() {
                value.split(',').map(|number| number.parse().ok()).collect()
            } else {
                field.words.iter().position(|word| *word == value).map(|index| vec![index as i64])
            };
            let numbers = numbers.filter(|numbers| numbers.len() == field.simplest.len());
            case.values[index] = numbers.ok_or_else(|| format!("`{word}` is no value of `{name}`"))?;
        }
        Ok(case)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op.name())?;
        for (field, numbers) in self.op.fields().iter().zip(&self.values) {
            if numbers == field.simplest {
                continue;
            }
            if field.words.is_empty() {
                let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
                write!(f, " {}={}", field.name, numbers.join(","))?;
            } else {
                write!(f, " {}={}", field.name, self.word(field.name))?;
            }
        }
        if !self.plan.is_empty() {
            write!(f, " plan={}", self.plan)?;
        }
        Ok(())
    }
}
