//! (to come)
#[derive(Clone, Debug)]
pub struct Problem;
#[derive(Clone, Debug)]
pub struct Problems;
