"""Task admission: tasks made from documents, admitted in order, replaced, and their results awaited."""
