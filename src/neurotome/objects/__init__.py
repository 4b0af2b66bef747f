"""Objects in labels, such as cells: found slice by slice, matched with the true ones, scored."""
