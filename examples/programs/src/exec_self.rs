//! fork, then execve of another program, as a shell does.

use crate::{Calls, Errno, System};

pub(crate) fn main<S: System>(sys: &S) -> Result<(), Errno> {
    sys.fork(|sys| sys.exec("page_size").0)?;
    say!(sys, "exec_self: the child that became another program: {:?}", sys.wait()?.1);
    Ok(())
}
