"""What compilers and profilers say of a program: FLOPs, bytes, copies, communication, time."""
