"""Reports: documents of sections, tables and charts, written as HTML or Markdown."""
