"""Which tasks are in flight: made from documents, admitted in order, replaced, their results awaited."""
