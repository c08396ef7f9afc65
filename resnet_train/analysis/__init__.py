"""From run folders to groups, significance, findings and figures. No torch."""
