"""Which tasks are in flight: made from documents, admitted in order, replaced, and their results awaited."""
