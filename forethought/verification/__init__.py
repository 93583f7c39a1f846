"""Answer verification, for objectives that reward right answers.

:mod:`forethought.verification.answers` defines the verifier protocol and compares text;
:mod:`forethought.verification.mathematics` compares mathematically, in a child process that runs
:mod:`forethought.verification.__main__`.
"""
