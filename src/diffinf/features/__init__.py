"""Who is shown: embedders behind one interface, what their similarities mean, and a differentiable copy of one."""
